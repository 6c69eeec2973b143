//! What numbers count when it is written as a sign or an abbreviation: currencies, units; and the months. Slavic forms
//! are "singular nominative, genitive, accusative; plural nominative, genitive"; that covers what follows a number in
//! the nominative, genitive and accusative, and the other cases are not made.

use super::Lang;
use super::numerals::Gender::{self, F, M, N};
use super::numerals::{Case, Count};

#[derive(Clone, Copy, Debug)]
pub(super) struct Noun {
    pub gender: Gender,
    forms: &'static str,
}

impl Noun {
    const fn new(gender: Gender, forms: &'static str) -> Self {
        Self { gender, forms }
    }

    fn form(&self, n: usize) -> &'static str {
        let separator = if self.forms.contains('|') { '|' } else { ' ' };
        self.forms.split(separator).nth(n).unwrap_or(self.forms)
    }

    /// With a whole number.
    pub fn with(&self, lang: Lang, n: u64, case: Case) -> &'static str {
        if lang == Lang::En {
            return self.form(usize::from(n != 1));
        }
        match (case, Count::of(n)) {
            (Case::Nom, Count::One) => self.form(0),
            (Case::Acc, Count::One) => self.form(2),
            (_, Count::One) => self.form(1),
            (Case::Nom | Case::Acc, Count::Few) if lang == Lang::Uk => self.form(3),
            (Case::Nom | Case::Acc, Count::Few) => self.form(1),
            _ => self.form(4),
        }
    }

    /// After a fraction: "п'ять десятих кілометра", "one point five kilometers".
    pub fn of_fraction(&self) -> &'static str {
        self.form(1)
    }

    /// After "million": "five million dollars", "п'ять мільйонів доларів".
    pub fn of_many(&self, lang: Lang) -> &'static str {
        self.form(if lang == Lang::En { 1 } else { 4 })
    }
}

/// A currency: its unit, and the hundredth.
#[derive(Clone, Copy, Debug)]
pub(super) struct Currency {
    pub unit: Noun,
    pub cent: Noun,
}

const EN_CENT: Noun = Noun::new(N, "cent cents");
const UK_CENT: Noun = Noun::new(M, "цент цента цент центи центів");
const RU_CENT: Noun = Noun::new(M, "цент цента цент центы центов");
const UK_KOPIYKA: Noun = Noun::new(F, "копійка копійки копійку копійки копійок");
const RU_KOPEK: Noun = Noun::new(F, "копейка копейки копейку копейки копеек");

const fn money(unit: Noun, cent: Noun) -> Currency {
    Currency { unit, cent }
}

/// The currency that a sign or abbreviation stands for (lower case, without points).
pub(super) fn currency(lang: Lang, name: &str) -> Option<Currency> {
    let which = match name {
        "$" | "usd" | "us$" | "дол" | "долл" => 0,
        "€" | "eur" | "євро" | "евро" => 1,
        "₴" | "uah" | "грн" => 2,
        "₽" | "rub" | "руб" | "р" => 3,
        "£" | "gbp" => 4,
        "zł" | "pln" => 5,
        _ => return None,
    };
    Some(match (lang, which) {
        (Lang::En, 0) => money(Noun::new(N, "dollar dollars"), EN_CENT),
        (Lang::En, 1) => money(Noun::new(N, "euro euros"), EN_CENT),
        (Lang::En, 2) => money(Noun::new(N, "hryvnia hryvnias"), Noun::new(N, "kopiyka kopiykas")),
        (Lang::En, 3) if name == "р" => return None,
        (Lang::En, 3) => money(Noun::new(N, "ruble rubles"), Noun::new(N, "kopek kopeks")),
        (Lang::En, 4) => money(Noun::new(N, "pound pounds"), Noun::new(N, "penny pence")),
        (Lang::En, _) => money(Noun::new(N, "zloty zlotys"), Noun::new(N, "grosz groszy")),
        (Lang::Uk, 0) => money(Noun::new(M, "долар долара долар долари доларів"), UK_CENT),
        (Lang::Uk, 1) => money(Noun::new(M, "євро євро євро євро євро"), UK_CENT),
        (Lang::Uk, 2) => money(Noun::new(F, "гривня гривні гривню гривні гривень"), UK_KOPIYKA),
        // "2026 р." is a year.
        (Lang::Uk, 3) if name == "р" => return None,
        (Lang::Uk, 3) => money(Noun::new(M, "рубль рубля рубль рублі рублів"), UK_KOPIYKA),
        (Lang::Uk, 4) => {
            money(Noun::new(M, "фунт фунта фунт фунти фунтів"), Noun::new(M, "пенс пенса пенс пенси пенсів"))
        }
        (Lang::Uk, _) => {
            money(Noun::new(M, "злотий злотого злотий злоті злотих"), Noun::new(M, "грош гроша грош гроші грошів"))
        }
        (Lang::Ru, 0) => money(Noun::new(M, "доллар доллара доллар доллары долларов"), RU_CENT),
        (Lang::Ru, 1) => money(Noun::new(M, "евро евро евро евро евро"), RU_CENT),
        (Lang::Ru, 2) => money(Noun::new(F, "гривна гривны гривну гривны гривен"), RU_KOPEK),
        (Lang::Ru, 3) => money(Noun::new(M, "рубль рубля рубль рубли рублей"), RU_KOPEK),
        (Lang::Ru, 4) => {
            money(Noun::new(M, "фунт фунта фунт фунты фунтов"), Noun::new(M, "пенс пенса пенс пенсы пенсов"))
        }
        (Lang::Ru, _) => {
            money(Noun::new(M, "злотый злотого злотый злотые злотых"), Noun::new(M, "грош гроша грош гроши грошей"))
        }
    })
}

/// "млн", "тис.", "M": a power of ten as a word.
pub(super) fn scale(lang: Lang, name: &str) -> Option<Noun> {
    let which = match name {
        "тис" | "тыс" | "k" | "к" => 0,
        "млн" | "million" | "m" | "mln" => 1,
        "млрд" | "billion" | "bn" => 2,
        "thousand" => 0,
        _ => return None,
    };
    Some(match (lang, which) {
        (Lang::En, 0) => Noun::new(N, "thousand thousand"),
        (Lang::En, 1) => Noun::new(N, "million million"),
        (Lang::En, _) => Noun::new(N, "billion billion"),
        (Lang::Uk, 0) => Noun::new(F, "тисяча тисячі тисячу тисячі тисяч"),
        (Lang::Uk, 1) => Noun::new(M, "мільйон мільйона мільйон мільйони мільйонів"),
        (Lang::Uk, _) => Noun::new(M, "мільярд мільярда мільярд мільярди мільярдів"),
        (Lang::Ru, 0) => Noun::new(F, "тысяча тысячи тысячу тысячи тысяч"),
        (Lang::Ru, 1) => Noun::new(M, "миллион миллиона миллион миллионы миллионов"),
        (Lang::Ru, _) => Noun::new(M, "миллиард миллиарда миллиард миллиарды миллиардов"),
    })
}

/// Units: how they are written, and their nouns.
type Units = &'static [(&'static [&'static str], Gender, &'static str)];

const EN_UNITS: Units = &[
    (&["%"], N, "percent percent"),
    (&["°C", "℃"], N, "degree Celsius|degrees Celsius"),
    (&["°F"], N, "degree Fahrenheit|degrees Fahrenheit"),
    (&["°"], N, "degree degrees"),
    (&["km/h", "kmh", "kph"], N, "kilometer per hour|kilometers per hour"),
    (&["mph"], N, "mile per hour|miles per hour"),
    (&["m²", "m2", "sqm"], N, "square meter|square meters"),
    (&["m³", "m3"], N, "cubic meter|cubic meters"),
    (&["km²"], N, "square kilometer|square kilometers"),
    (&["km"], N, "kilometer kilometers"),
    (&["cm"], N, "centimeter centimeters"),
    (&["mm"], N, "millimeter millimeters"),
    (&["m"], N, "meter meters"),
    (&["kg"], N, "kilogram kilograms"),
    (&["g"], N, "gram grams"),
    (&["mg"], N, "milligram milligrams"),
    (&["lb", "lbs"], N, "pound pounds"),
    (&["oz"], N, "ounce ounces"),
    (&["ft"], N, "foot feet"),
    (&["ml"], N, "milliliter milliliters"),
    (&["l", "L"], N, "liter liters"),
    (&["GB"], N, "gigabyte gigabytes"),
    (&["MB"], N, "megabyte megabytes"),
    (&["TB"], N, "terabyte terabytes"),
    (&["Mbps", "Mbit/s"], N, "megabit per second|megabits per second"),
    (&["kW"], N, "kilowatt kilowatts"),
    (&["W"], N, "watt watts"),
    (&["V"], N, "volt volts"),
    (&["ms"], N, "millisecond milliseconds"),
    (&["sec", "s"], N, "second seconds"),
    (&["min", "mins"], N, "minute minutes"),
    (&["h", "hr", "hrs"], N, "hour hours"),
    (&["pcs"], N, "piece pieces"),
];

const UK_UNITS: Units = &[
    (&["%"], M, "відсоток відсотка відсоток відсотки відсотків"),
    (&["°C", "°С", "℃"], M, "градус Цельсія|градуса Цельсія|градус Цельсія|градуси Цельсія|градусів Цельсія"),
    (&["°F"], M, "градус Фаренгейта|градуса Фаренгейта|градус Фаренгейта|градуси Фаренгейта|градусів Фаренгейта"),
    (&["°"], M, "градус градуса градус градуси градусів"),
    (
        &["км/год", "км/г", "km/h"],
        M,
        "кілометр на годину|кілометра на годину|кілометр на годину|кілометри на годину|кілометрів на годину",
    ),
    (
        &["м²", "м2", "кв.м", "кв. м", "m²"],
        M,
        "квадратний метр|квадратного метра|квадратний метр|квадратні метри|квадратних метрів",
    ),
    (&["м³", "м3", "m³"], M, "кубічний метр|кубічного метра|кубічний метр|кубічні метри|кубічних метрів"),
    (&["км", "km"], M, "кілометр кілометра кілометр кілометри кілометрів"),
    (&["см", "cm"], M, "сантиметр сантиметра сантиметр сантиметри сантиметрів"),
    (&["мм", "mm"], M, "міліметр міліметра міліметр міліметри міліметрів"),
    (&["м", "m"], M, "метр метра метр метри метрів"),
    (&["кг", "kg"], M, "кілограм кілограма кілограм кілограми кілограмів"),
    (&["г", "гр", "g"], M, "грам грама грам грами грамів"),
    (&["мг", "mg"], M, "міліграм міліграма міліграм міліграми міліграмів"),
    (&["мл", "ml"], M, "мілілітр мілілітра мілілітр мілілітри мілілітрів"),
    (&["л", "l"], M, "літр літра літр літри літрів"),
    (&["ГБ", "Гб", "GB"], M, "гігабайт гігабайта гігабайт гігабайти гігабайтів"),
    (&["МБ", "Мб", "MB"], M, "мегабайт мегабайта мегабайт мегабайти мегабайтів"),
    (&["ТБ", "Тб", "TB"], M, "терабайт терабайта терабайт терабайти терабайтів"),
    (
        &["Мбіт/с", "Mbps"],
        M,
        "мегабіт за секунду|мегабіта за секунду|мегабіт за секунду|мегабіти за секунду|мегабітів за секунду",
    ),
    (&["кВт", "kW"], M, "кіловат кіловата кіловат кіловати кіловатів"),
    (&["Вт", "W"], M, "ват вата ват вати ватів"),
    (&["сек"], F, "секунда секунди секунду секунди секунд"),
    (&["хв"], F, "хвилина хвилини хвилину хвилини хвилин"),
    (&["год"], F, "година години годину години годин"),
    (&["дн"], M, "день дня день дні днів"),
    (&["міс"], M, "місяць місяця місяць місяці місяців"),
    (&["шт"], F, "штука штуки штуку штуки штук"),
    (&["ос", "чол"], F, "особа особи особу особи осіб"),
    (&["коп"], F, "копійка копійки копійку копійки копійок"),
];

const RU_UNITS: Units = &[
    (&["%"], M, "процент процента процент проценты процентов"),
    (&["°C", "°С", "℃"], M, "градус Цельсия|градуса Цельсия|градус Цельсия|градусы Цельсия|градусов Цельсия"),
    (&["°F"], M, "градус Фаренгейта|градуса Фаренгейта|градус Фаренгейта|градусы Фаренгейта|градусов Фаренгейта"),
    (&["°"], M, "градус градуса градус градусы градусов"),
    (&["км/ч", "km/h"], M, "километр в час|километра в час|километр в час|километры в час|километров в час"),
    (
        &["м²", "м2", "кв.м", "кв. м", "m²"],
        M,
        "квадратный метр|квадратного метра|квадратный метр|квадратные метры|квадратных метров",
    ),
    (&["м³", "м3", "m³"], M, "кубический метр|кубического метра|кубический метр|кубические метры|кубических метров"),
    (&["км", "km"], M, "километр километра километр километры километров"),
    (&["см", "cm"], M, "сантиметр сантиметра сантиметр сантиметры сантиметров"),
    (&["мм", "mm"], M, "миллиметр миллиметра миллиметр миллиметры миллиметров"),
    (&["м", "m"], M, "метр метра метр метры метров"),
    (&["кг", "kg"], M, "килограмм килограмма килограмм килограммы килограммов"),
    (&["г", "гр", "g"], M, "грамм грамма грамм граммы граммов"),
    (&["мг", "mg"], M, "миллиграмм миллиграмма миллиграмм миллиграммы миллиграммов"),
    (&["мл", "ml"], M, "миллилитр миллилитра миллилитр миллилитры миллилитров"),
    (&["л", "l"], M, "литр литра литр литры литров"),
    (&["ГБ", "Гб", "GB"], M, "гигабайт гигабайта гигабайт гигабайты гигабайт"),
    (&["МБ", "Мб", "MB"], M, "мегабайт мегабайта мегабайт мегабайты мегабайт"),
    (&["ТБ", "Тб", "TB"], M, "терабайт терабайта терабайт терабайты терабайт"),
    (
        &["Мбит/с", "Mbps"],
        M,
        "мегабит в секунду|мегабита в секунду|мегабит в секунду|мегабиты в секунду|мегабит в секунду",
    ),
    (&["кВт", "kW"], M, "киловатт киловатта киловатт киловатты киловатт"),
    (&["Вт", "W"], M, "ватт ватта ватт ватты ватт"),
    (&["сек"], F, "секунда секунды секунду секунды секунд"),
    (&["мин"], F, "минута минуты минуту минуты минут"),
    (&["час", "ч"], M, "час часа час часы часов"),
    (&["дн"], M, "день дня день дни дней"),
    (&["мес"], M, "месяц месяца месяц месяцы месяцев"),
    (&["шт"], F, "штука штуки штуку штуки штук"),
    (&["чел"], M, "человек человека человек человека человек"),
    (&["коп"], F, "копейка копейки копейку копейки копеек"),
];

/// The unit that a text begins with, and its length in bytes; the longest that fits.
pub(super) fn unit(lang: Lang, text: &str) -> Option<(Noun, usize)> {
    let units = match lang {
        Lang::En => EN_UNITS,
        Lang::Uk => UK_UNITS,
        Lang::Ru => RU_UNITS,
    };
    let mut best: Option<(Noun, usize)> = None;
    for (names, gender, forms) in units {
        for name in *names {
            let Some(after) = text.strip_prefix(name) else { continue };
            let word = name.ends_with(char::is_alphanumeric);
            let whole = !word || !after.starts_with(|c: char| c.is_alphanumeric() || matches!(c, '\'' | '’' | '-'));
            if whole && best.is_none_or(|(_, length)| length < name.len()) {
                best = Some((Noun::new(*gender, forms), name.len()));
            }
        }
    }
    best
}

pub(super) const EN_MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const UK_MONTHS: [&str; 12] = [
    "січня",
    "лютого",
    "березня",
    "квітня",
    "травня",
    "червня",
    "липня",
    "серпня",
    "вересня",
    "жовтня",
    "листопада",
    "грудня",
];
const RU_MONTHS: [&str; 12] = [
    "января",
    "февраля",
    "марта",
    "апреля",
    "мая",
    "июня",
    "июля",
    "августа",
    "сентября",
    "октября",
    "ноября",
    "декабря",
];

/// The name of a month, 1 to 12, as it stands in a date.
pub(super) fn month(lang: Lang, number: u64) -> Option<&'static str> {
    let months = match lang {
        Lang::En => &EN_MONTHS,
        Lang::Uk => &UK_MONTHS,
        Lang::Ru => &RU_MONTHS,
    };
    months.get(usize::try_from(number).ok()?.checked_sub(1)?).copied()
}

/// The month that a word names: whole, or an English abbreviation with a capital ("Nov").
pub(super) fn month_named(lang: Lang, word: &str) -> Option<&'static str> {
    if lang == Lang::En {
        let short = match word {
            "Sept" => "Sep",
            word => word,
        };
        return EN_MONTHS.into_iter().find(|name| *name == short || (short.len() == 3 && name.starts_with(short)));
    }
    let lower = word.to_lowercase();
    let months = if lang == Lang::Uk { &UK_MONTHS } else { &RU_MONTHS };
    months.iter().find(|name| **name == lower).copied()
}
