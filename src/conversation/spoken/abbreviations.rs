//! Abbreviations to the words they stand for. Slavic words of addresses take the genitive or the locative after a
//! preposition that asks for it; other cases are not made. What is not in the tables is left to the voice.

use super::{Lang, Place, Reading};

/// When an abbreviation means this.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Always,
    /// The sentence goes on, whatever follows.
    Within,
    /// A number follows.
    Number,
    /// A comma stands before it, and a number follows: part of an address.
    AfterComma,
    /// A name follows, so its point never ends a sentence.
    Name,
    /// A name stands before it ("Oak St.").
    AfterName,
}

use When::{AfterComma, AfterName, Always, Name, Number, Within};

/// As written in lower case, what it means, and "nominative|genitive|locative" or one form.
type Table = &'static [(&'static str, When, &'static str)];

const EN: Table = &[
    ("e.g.", Within, "for example"),
    ("i.e.", Within, "that is"),
    ("etc.", Always, "et cetera"),
    ("vs.", Within, "versus"),
    ("approx.", Within, "approximately"),
    ("no.", Number, "number"),
    ("st.", AfterName, "Street"),
    ("st.", Name, "Saint"),
    ("ave.", Always, "Avenue"),
    ("rd.", AfterName, "Road"),
    ("blvd.", Always, "Boulevard"),
    ("sq.", AfterName, "Square"),
    ("ln.", AfterName, "Lane"),
    ("apt.", Always, "apartment"),
    ("bldg.", Always, "building"),
    ("dept.", Always, "department"),
    ("ext.", Always, "extension"),
    ("tel.", Within, "telephone"),
    ("dr.", AfterName, "Drive"),
    ("dr.", Name, "Doctor"),
    ("mr.", Name, "Mister"),
    ("mrs.", Name, "Missus"),
    ("prof.", Name, "Professor"),
    ("max.", Number, "maximum"),
    ("min.", Number, "minimum"),
    ("inc.", Always, "Incorporated"),
    ("ltd.", Always, "Limited"),
    ("a.m.", Always, "AM"),
    ("p.m.", Always, "PM"),
    ("w/o", Always, "without"),
];

const UK: Table = &[
    ("т. д.", Always, "так далі"),
    ("т.д.", Always, "так далі"),
    ("т. п.", Always, "тому подібне"),
    ("т.п.", Always, "тому подібне"),
    ("т. ч.", Within, "тому числі"),
    ("т.ч.", Within, "тому числі"),
    ("т. зв.", Within, "так званий"),
    ("напр.", Within, "наприклад"),
    ("див.", Within, "дивіться"),
    ("вул.", Always, "вулиця|вулиці|вулиці"),
    ("просп.", Always, "проспект|проспекту|проспекті"),
    ("пр-т", Always, "проспект|проспекту|проспекті"),
    ("пр.", Name, "проспект|проспекту|проспекті"),
    ("пров.", Always, "провулок|провулка|провулку"),
    ("бульв.", Always, "бульвар|бульвару|бульварі"),
    ("б-р", Always, "бульвар|бульвару|бульварі"),
    ("пл.", Name, "площа|площі|площі"),
    ("наб.", Name, "набережна|набережної|набережній"),
    ("м.", Name, "місто|міста|місті"),
    ("с.", Name, "село|села|селі"),
    ("смт", Name, "селище|селища|селищі"),
    ("обл.", Always, "область|області|області"),
    ("р-н", Always, "район|району|районі"),
    ("буд.", Always, "будинок|будинку|будинку"),
    ("д.", Number, "дім|дому|домі"),
    ("корп.", Number, "корпус|корпусу|корпусі"),
    ("під.", Number, "під'їзд|під'їзду|під'їзді"),
    ("пов.", Number, "поверх|поверху|поверсі"),
    ("кв.", Number, "квартира|квартири|квартирі"),
    ("оф.", Number, "офіс|офісу|офісі"),
    ("каб.", Number, "кабінет|кабінету|кабінеті"),
    ("тел.", Within, "телефон|телефону|телефоні"),
    ("моб.", Always, "мобільний"),
    ("дод.", Number, "додатковий"),
    ("стор.", Number, "сторінка|сторінки|сторінці"),
    ("ім.", Within, "імені"),
    ("ст.", Name, "станція|станції|станції"),
    ("п.", Name, "пан"),
    ("проф.", Name, "професор"),
    ("грн.", Always, "гривень"),
    ("грн", Always, "гривень"),
    ("коп.", Always, "копійок"),
    ("год.", Always, "годин"),
    ("хв.", Always, "хвилин"),
    ("макс.", Always, "максимум"),
    ("мін.", Always, "мінімум"),
];

const RU: Table = &[
    ("т. д.", Always, "так далее"),
    ("т.д.", Always, "так далее"),
    ("т. п.", Always, "тому подобное"),
    ("т.п.", Always, "тому подобное"),
    ("т. е.", Within, "то есть"),
    ("т.е.", Within, "то есть"),
    ("т. к.", Within, "так как"),
    ("т.к.", Within, "так как"),
    ("т. ч.", Within, "том числе"),
    ("т.ч.", Within, "том числе"),
    ("напр.", Within, "например"),
    ("см.", Within, "смотрите"),
    ("ул.", Always, "улица|улицы|улице"),
    ("просп.", Always, "проспект|проспекта|проспекте"),
    ("пр-т", Always, "проспект|проспекта|проспекте"),
    ("пр.", Name, "проспект|проспекта|проспекте"),
    ("пер.", Always, "переулок|переулка|переулке"),
    ("бульв.", Always, "бульвар|бульвара|бульваре"),
    ("б-р", Always, "бульвар|бульвара|бульваре"),
    ("пл.", Name, "площадь|площади|площади"),
    ("наб.", Name, "набережная|набережной|набережной"),
    ("ш.", Name, "шоссе"),
    ("г.", Name, "город|города|городе"),
    ("с.", Name, "село|села|селе"),
    ("обл.", Always, "область|области|области"),
    ("р-н", Always, "район|района|районе"),
    ("д.", Number, "дом|дома|доме"),
    ("корп.", Number, "корпус|корпуса|корпусе"),
    ("стр.", AfterComma, "строение|строения|строении"),
    ("стр.", Number, "страница|страницы|странице"),
    ("под.", Number, "подъезд|подъезда|подъезде"),
    ("эт.", Number, "этаж|этажа|этаже"),
    ("кв.", Number, "квартира|квартиры|квартире"),
    ("оф.", Number, "офис|офиса|офисе"),
    ("каб.", Number, "кабинет|кабинета|кабинете"),
    ("тел.", Within, "телефон|телефона|телефоне"),
    ("моб.", Always, "мобильный"),
    ("доб.", Number, "добавочный"),
    ("им.", Within, "имени"),
    ("ст.", Name, "станция|станции|станции"),
    ("проф.", Name, "профессор"),
    ("руб.", Always, "рублей"),
    ("коп.", Always, "копеек"),
    ("мин.", Always, "минут"),
    ("макс.", Always, "максимум"),
];

/// The abbreviation that the text begins with.
pub(super) fn read(place: &Place) -> Option<Reading> {
    let table = match place.lang {
        Lang::En => EN,
        Lang::Uk => UK,
        Lang::Ru => RU,
    };
    let first = place.rest.chars().next().and_then(|c| c.to_lowercase().next())?;
    for (written, when, words) in table {
        if !written.starts_with(first) {
            continue;
        }
        let Some(after) = strip(place.rest, written) else { continue };
        if !written.ends_with('.') && after.starts_with(|c: char| c.is_alphanumeric() || matches!(c, '\'' | '’' | '-'))
        {
            continue;
        }
        let next = after.trim_start_matches([' ', '\u{a0}']).chars().next();
        let name_follows = next.is_some_and(char::is_uppercase);
        let number_follows = next.is_some_and(|c| c.is_ascii_digit() || matches!(c, '№' | '#'));
        let fits = match when {
            Always | Within => true,
            Number => number_follows,
            AfterComma => number_follows && place.previous() == ",",
            Name => name_follows,
            AfterName => place.name_before(),
        };
        if !fits {
            continue;
        }
        let address = words.contains('|');
        let sentence_over = next.is_none() || (name_follows && !matches!(when, Name | Within) && !address);
        let point = written.ends_with('.') && sentence_over && !after.starts_with('.');
        let mut words = inflected(place, words).to_owned();
        if place.rest.starts_with(char::is_uppercase) && words.starts_with(char::is_lowercase) {
            let rest: String = words.chars().skip(1).collect();
            words = words.chars().take(1).flat_map(char::to_uppercase).chain(rest.chars()).collect();
        }
        if point {
            words.push('.');
        } else if after.starts_with(char::is_alphanumeric) {
            // "вул.Садова".
            words.push(' ');
        }
        return Some(Reading { len: place.rest.len() - after.len(), words });
    }
    None
}

fn inflected(place: &Place, forms: &'static str) -> &'static str {
    let n = match place.previous().as_str() {
        "на" | "в" | "у" | "по" | "о" | "при" => 2,
        "від" | "до" | "з" | "із" | "біля" | "після" | "от" | "с" | "из" | "возле" | "около" => {
            1
        }
        _ => 0,
    };
    forms.split('|').nth(n).or_else(|| forms.split('|').next()).unwrap_or(forms)
}

/// What follows a beginning in any case.
fn strip<'a>(text: &'a str, lower: &str) -> Option<&'a str> {
    let mut rest = text.chars();
    for expected in lower.chars() {
        let c = rest.next()?;
        let same = c == expected || (expected == ' ' && c == '\u{a0}') || c.to_lowercase().eq([expected]);
        if !same {
            return None;
        }
    }
    Some(rest.as_str())
}
