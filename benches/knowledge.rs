//! How well and how fast 10,000 passages are searched: hit rate at 5 and lookup latency, on SQLite, and on PostgreSQL where
//! `OFFHOOK_TEST_POSTGRES` names one (`scripts/postgres.sh`). `cargo bench --bench knowledge`.
//!
//! The passages are made: 278 places in each of three languages (English, Ukrainian, Russian), each with twelve topics, one
//! passage a topic, so that every topic is there 278 times and every name twelve times in its language. The same words stand
//! in hundreds of passages: a hit needs the name and the topic together. Questions are of three kinds, one third each:
//! *near* uses the passage's main words in other forms and order; *told otherwise* shares the topic's word only, in another
//! form, inside a caller's small talk; *without a word* shares no word but the name, which full text cannot do by design:
//! whatever it scores there, it scores by the name. The mock's vectors mean nothing, so that full text alone is measured.
//!
//! Then what a turn waits for its lookup where vectors come from an endpoint that takes 100 or 300 ms (the mock, by HTTP on
//! loopback), with the lookup ahead and without.

use std::time::{Duration, Instant};

use bytes::Bytes;
use offhook::agent::knowledge::ahead::{Ahead, Guess};
use offhook::agent::knowledge::rank::{nearest, normalise};
use offhook::agent::knowledge::{Knowledge, Library as _, Lookup};
use offhook::mock::openai::{MockConfig, MockOpenAi};
use offhook::store::companies::CompanySettings;
use offhook::store::knowledge::embeddings::KnowledgeConfig;
use offhook::store::knowledge::{Added, KnowledgeBases, NewBase};
use stores::Base;
use uuid::Uuid;

#[path = "../tests/common/stores.rs"]
mod stores;

/// Places of one language: 278 × 12 topics × 3 languages are 10,008 passages.
const PLACES: usize = 278;
/// Every so many places are asked about, by all questions.
const ASKED: usize = 9;
const IN_ONE_FILE: usize = 25;

struct Tongue {
    code: &'static str,
    first: [&'static str; 20],
    second: [&'static str; 14],
    topics: [Topic; 12],
}

/// Heading and text of the passage, then the three questions. `{n}` is the place's name, `{x}` a number.
type Topic = (&'static str, &'static str, [&'static str; 3]);

const KINDS: [&str; 3] = ["near", "told otherwise", "without a word"];

const ENGLISH: Tongue = Tongue {
    code: "en",
    first: [
        "Silver", "Golden", "Old", "Green", "Royal", "Quiet", "Blue", "Northern", "Sunny", "Little", "Crystal",
        "Amber", "Velvet", "Marble", "Copper", "Ivory", "Scarlet", "Misty", "Winter", "Harbour",
    ],
    second: [
        "Fox", "Lantern", "Bridge", "Oak", "Swan", "Mill", "Anchor", "Rose", "Falcon", "Orchard", "Meadow", "Castle",
        "Pearl", "Compass",
    ],
    topics: [
        (
            "Meals",
            "Breakfast is served in the restaurant from 7 until {x}; guests pay 12 euros.",
            [
                "When is breakfast served at {n}?",
                "hello um I'm staying at {n} do you do breakfasts",
                "where can I eat in the morning at {n}",
            ],
        ),
        (
            "Parking",
            "The underground garage holds {x} cars. A parking space costs 15 euros a day.",
            [
                "What does a parking space in the garage of {n} cost?",
                "hi we come by car to {n} can we park somewhere",
                "where do I leave my vehicle at {n}",
            ],
        ),
        (
            "Animals",
            "Dogs up to {x} kilograms are welcome; a deposit of 30 euros is taken.",
            [
                "Are dogs welcome at {n} and is there a deposit?",
                "so listen can my dog stay with me at {n}",
                "I travel with a puppy to {n}",
            ],
        ),
        (
            "Cancelling",
            "A booking can be cancelled free of charge up to {x} days before arrival.",
            [
                "Can I cancel a booking at {n} free of charge?",
                "my plans changed and I need the cancellation rules of {n}",
                "I will not come to {n} after all do I get my money back",
            ],
        ),
        (
            "Swimming",
            "The heated pool is open daily until {x} o'clock; towels are provided.",
            [
                "Until when is the pool of {n} open?",
                "do you guys have a pool over there at {n}",
                "can the kids have a swim at {n}",
            ],
        ),
        (
            "Internet",
            "Wireless internet is free in every room; the network password is printed on key card {x}.",
            [
                "What is the password of the wireless network at {n}?",
                "is there internet at {n} because I work a lot",
                "how do I get online at {n}",
            ],
        ),
        (
            "Transfers",
            "A shuttle bus to the airport leaves every {x} minutes from the main entrance.",
            [
                "How often does the airport shuttle of {n} leave?",
                "we land late how do we get from the airport to {n}",
                "can somebody pick me up for {n} when my plane lands",
            ],
        ),
        (
            "Payment",
            "We accept cards and cash; invoices for companies are sent within {x} days.",
            [
                "Does {n} accept cards or only cash?",
                "for my company I need an invoice from {n}",
                "how do I settle the bill at {n}",
            ],
        ),
        (
            "Accessibility",
            "There is a lift to all {x} floors, and a ramp for wheelchairs at the side door.",
            [
                "Is there a lift and a wheelchair ramp at {n}?",
                "my mother uses a wheelchair will that work at {n}",
                "I cannot climb stairs is {n} suitable",
            ],
        ),
        (
            "Spa",
            "Massages and the sauna can be reserved at extension {x}; the sauna is closed on Mondays.",
            [
                "On which day is the sauna of {n} closed?",
                "I'd like a massage tomorrow at {n}",
                "what can I do to relax at {n}",
            ],
        ),
        (
            "Children",
            "Cots for babies are free; a babysitter comes for {x} euros an hour.",
            [
                "How much is a babysitter at {n}?",
                "we bring a baby to {n} do you have a cot",
                "who looks after our son at {n} in the evening",
            ],
        ),
        (
            "Arrival",
            "Check-in begins at 15 o'clock; luggage may be left at the reception from {x}.",
            [
                "When does check-in begin at {n}?",
                "can we drop our luggage at {n} before",
                "our train gets in early may we have the room of {n} already",
            ],
        ),
    ],
};

const UKRAINIAN: Tongue = Tongue {
    code: "uk",
    first: [
        "Срібний",
        "Золотий",
        "Старий",
        "Зелений",
        "Королівський",
        "Тихий",
        "Синій",
        "Північний",
        "Сонячний",
        "Малий",
        "Кришталевий",
        "Бурштиновий",
        "Оксамитовий",
        "Мармуровий",
        "Мідний",
        "Кам'яний",
        "Червоний",
        "Туманний",
        "Зимовий",
        "Морський",
    ],
    second: [
        "Лис",
        "Ліхтар",
        "Міст",
        "Дуб",
        "Лебідь",
        "Млин",
        "Якір",
        "Терен",
        "Сокіл",
        "Сад",
        "Луг",
        "Замок",
        "Перлин",
        "Компас",
    ],
    topics: [
        (
            "Харчування",
            "Сніданок подають у ресторані з 7 до {x} години; гості платять 300 гривень.",
            ["Коли подають сніданок у «{n}»?", "добрий день а у вас в {n} є сніданки", "де можна поїсти зранку в {n}"],
        ),
        (
            "Паркування",
            "Підземний гараж має {x} місць. Стоянка коштує 200 гривень на добу.",
            [
                "Скільки коштує стоянка в гаражі «{n}»?",
                "ми їдемо машиною до {n} чи є там гараж",
                "де мені лишити автомобіль біля {n}",
            ],
        ),
        (
            "Тварини",
            "Собаки вагою до {x} кілограмів дозволені; береться застава 500 гривень.",
            [
                "Чи дозволені собаки в «{n}» і яка застава?",
                "слухайте а можна з собакою до {n}",
                "я подорожую з цуценям до {n}",
            ],
        ),
        (
            "Скасування",
            "Бронювання можна скасувати безкоштовно за {x} діб до заїзду.",
            [
                "Чи можна безкоштовно скасувати бронювання в «{n}»?",
                "у мене змінилися плани які умови скасування в {n}",
                "я не приїду до {n} чи повернуть мені гроші",
            ],
        ),
        (
            "Плавання",
            "Басейн з підігрівом працює щодня до {x} години; рушники видаємо.",
            ["До котрої години працює басейн у «{n}»?", "а басейну у вас в {n} немає", "де дітям поплавати в {n}"],
        ),
        (
            "Інтернет",
            "Бездротовий інтернет безкоштовний у кожній кімнаті; пароль від мережі на картці {x}.",
            ["Який пароль від мережі в «{n}»?", "мені треба працювати чи є інтернет у {n}", "як вийти онлайн у {n}"],
        ),
        (
            "Трансфер",
            "Автобус до аеропорту від'їжджає кожні {x} хвилин від головного входу.",
            [
                "Як часто від'їжджає автобус до аеропорту від «{n}»?",
                "ми прилітаємо пізно як дістатися з аеропорту до {n}",
                "хто нас зустріне з літака і довезе до {n}",
            ],
        ),
        (
            "Оплата",
            "Приймаємо картки та готівку; рахунки для компаній надсилаємо за {x} дні.",
            ["«{n}» приймає картки чи готівку?", "мені на фірму потрібен рахунок від {n}", "чим розплатитися в {n}"],
        ),
        (
            "Доступність",
            "Ліфт їде на всі {x} поверхів, біля бічних дверей є пандус для візків.",
            [
                "Чи є ліфт і пандус у «{n}»?",
                "моя мама на візку чи зможе вона заїхати в {n}",
                "мені важко сходами чи підійде {n}",
            ],
        ),
        (
            "Спа",
            "Масаж і сауну замовляють за номером {x}; у понеділок сауна зачинена.",
            ["Коли зачинена сауна в «{n}»?", "хочу завтра на масаж у {n}", "де можна відпочити і розслабитися в {n}"],
        ),
        (
            "Діти",
            "Дитячі ліжечка безкоштовні; няня коштує {x} гривень за годину.",
            [
                "Скільки коштує няня в «{n}»?",
                "ми з немовлям до {n} чи буде ліжечко",
                "хто посидить із сином увечері в {n}",
            ],
        ),
        (
            "Заїзд",
            "Поселення починається о 15 годині; багаж можна лишити на рецепції з {x} години.",
            [
                "Коли починається поселення в «{n}»?",
                "можна раніше лишити багаж у {n}",
                "наш потяг прибуває рано чи пустять нас до {n}",
            ],
        ),
    ],
};

const RUSSIAN: Tongue = Tongue {
    code: "ru",
    first: [
        "Серебряный",
        "Золотой",
        "Старый",
        "Зелёный",
        "Королевский",
        "Тихий",
        "Синий",
        "Северный",
        "Солнечный",
        "Малый",
        "Хрустальный",
        "Янтарный",
        "Бархатный",
        "Мраморный",
        "Медный",
        "Каменный",
        "Красный",
        "Туманный",
        "Зимний",
        "Морской",
    ],
    second: [
        "Лис",
        "Фонарь",
        "Мост",
        "Дуб",
        "Лебедь",
        "Ручей",
        "Якорь",
        "Шиповник",
        "Сокол",
        "Сад",
        "Луг",
        "Замок",
        "Жемчуг",
        "Компас",
    ],
    topics: [
        (
            "Питание",
            "Завтрак подают в ресторане с 7 до {x} часов; гости платят 500 рублей.",
            [
                "Когда подают завтрак в «{n}»?",
                "добрый день а у вас в {n} есть завтраки",
                "где можно поесть утром в {n}",
            ],
        ),
        (
            "Стоянка",
            "Подземный гараж вмещает {x} машин. Парковка стоит 400 рублей в сутки.",
            [
                "Сколько стоит парковка в гараже «{n}»?",
                "мы едем на машине в {n} есть ли гараж",
                "где мне оставить автомобиль у {n}",
            ],
        ),
        (
            "Животные",
            "Собаки весом до {x} килограммов разрешены; берётся залог 900 рублей.",
            [
                "Разрешены ли собаки в «{n}» и какой залог?",
                "слушайте а с собакой можно в {n}",
                "я путешествую со щенком в {n}",
            ],
        ),
        (
            "Отмена",
            "Бронирование можно отменить бесплатно за {x} суток до заезда.",
            [
                "Можно ли бесплатно отменить бронирование в «{n}»?",
                "у меня поменялись планы как отменить {n}",
                "я не приеду в {n} вернут ли мне деньги",
            ],
        ),
        (
            "Плавание",
            "Бассейн с подогревом работает ежедневно до {x} часов; полотенца выдаём.",
            ["До какого часа работает бассейн в «{n}»?", "а бассейна у вас в {n} нет", "где детям искупаться в {n}"],
        ),
        (
            "Интернет",
            "Беспроводной интернет бесплатный в каждой комнате; пароль от сети на карточке {x}.",
            ["Какой пароль от сети в «{n}»?", "мне надо работать есть ли интернет в {n}", "как выйти онлайн в {n}"],
        ),
        (
            "Трансфер",
            "Автобус в аэропорт отходит каждые {x} минут от главного входа.",
            [
                "Как часто отходит автобус в аэропорт от «{n}»?",
                "мы прилетаем поздно как добраться из аэропорта в {n}",
                "кто нас встретит с самолёта и довезёт до {n}",
            ],
        ),
        (
            "Оплата",
            "Принимаем карты и наличные; счета для компаний высылаем за {x} дня.",
            ["«{n}» принимает карты или наличные?", "мне на фирму нужен счёт от {n}", "чем расплатиться в {n}"],
        ),
        (
            "Доступность",
            "Лифт едет на все {x} этажей, у боковой двери есть пандус для колясок.",
            [
                "Есть ли лифт и пандус в «{n}»?",
                "моя мама на коляске сможет ли она заехать в {n}",
                "мне тяжело по ступенькам подойдёт ли {n}",
            ],
        ),
        (
            "Спа",
            "Массаж и сауну заказывают по номеру {x}; в понедельник сауна закрыта.",
            ["Когда закрыта сауна в «{n}»?", "хочу завтра на массаж в {n}", "где можно отдохнуть и расслабиться в {n}"],
        ),
        (
            "Дети",
            "Детские кроватки бесплатны; няня стоит {x} рублей в час.",
            [
                "Сколько стоит няня в «{n}»?",
                "мы с младенцем в {n} будет ли кроватка",
                "кто посидит с сыном вечером в {n}",
            ],
        ),
        (
            "Заезд",
            "Заселение начинается в 15 часов; багаж можно оставить на ресепшене с {x} часов.",
            [
                "Когда начинается заселение в «{n}»?",
                "можно раньше оставить багаж в {n}",
                "наш поезд приходит рано пустят ли нас в {n}",
            ],
        ),
    ],
};

impl Tongue {
    fn name(&self, place: usize) -> String {
        format!("{} {}", self.first[place % self.first.len()], self.second[place / self.first.len()])
    }

    /// Some places of one language, each a chapter.
    fn file(&self, places: std::ops::Range<usize>) -> String {
        let mut text = String::new();
        for place in places {
            text.push_str(&format!("# {}\n\n", self.name(place)));
            for (at, (heading, passage, _)) in self.topics.iter().enumerate() {
                let number = 2 + (place * 7 + at * 3) % 19;
                text.push_str(&format!("## {heading}\n\n{}\n\n", passage.replace("{x}", &number.to_string())));
            }
        }
        text
    }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    vectors(384);
    vectors(1536);
    runtime.block_on(async {
        println!("SQLite");
        measure(Base::sqlite()).await;
        if let Some(base) = Base::postgres().await {
            println!("PostgreSQL");
            measure(base).await;
        }
        for delay_ms in [100, 300] {
            println!("a turn's wait for its lookup, vectors in {delay_ms} ms, SQLite");
            wait(Base::sqlite(), delay_ms).await;
            if let Some(base) = Base::postgres().await {
                println!("a turn's wait for its lookup, vectors in {delay_ms} ms, PostgreSQL");
                wait(base, delay_ms).await;
            }
        }
    });
}

/// The comparison of one question's vector with those of 10,000 passages.
fn vectors(dimensions: usize) {
    let mut seed = 1u64;
    // xorshift64: any numbers will do.
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let mut vectors: Vec<f32> = (0..10_000 * dimensions).map(|_| random()).collect();
    for vector in vectors.chunks_exact_mut(dimensions) {
        normalise(vector);
    }
    let mut times: Vec<Duration> = (0..200)
        .map(|_| {
            let mut question: Vec<f32> = (0..dimensions).map(|_| random()).collect();
            normalise(&mut question);
            let begun = Instant::now();
            assert_eq!(nearest(&vectors, &question, 48).len(), 48);
            begun.elapsed()
        })
        .collect();
    times.sort_unstable();
    println!("10,000 vectors of {dimensions} numbers: p50 {:.2?}, p99 {:.2?}", times[100], times[198]);
}

async fn measure(base: Base) {
    let store = base.open().await;
    let bases = KnowledgeBases::without_vectors(store.clone());
    let company = store.add_company("Acme", &CompanySettings::default()).await.expect("a company").id;
    let made = store.add_knowledge_base(company, "All", "en").await.expect("a base");
    let NewBase::Made(info) = made else { panic!("too many bases") };
    let begun = Instant::now();
    for tongue in [&ENGLISH, &UKRAINIAN, &RUSSIAN] {
        for first in (0..PLACES).step_by(IN_ONE_FILE) {
            let text = tongue.file(first..(first + IN_ONE_FILE).min(PLACES));
            let name = format!("{}-{first}.md", tongue.code);
            let added = bases.add(company, info.id, &name, Bytes::from(text)).await.expect("the store answers");
            let Added::Taken(document) = added else { panic!("{added:?}") };
            bases.index(document.id).await.expect("it is indexed");
        }
    }
    let shown = store.knowledge_base(company, info.id).await.expect("the store answers").expect("it is there");
    println!("  {} passages of {} documents indexed in {:.1?}", shown.passages, shown.documents, begun.elapsed());

    let begun = Instant::now();
    let warm = Lookup { query: "breakfast".into(), language: "en".into(), limit: 5, ..Lookup::default() };
    bases.search(company, info.id, &warm).await.expect("the store answers");
    println!("  the first lookup, which reads the words' statistics: {:.1?}", begun.elapsed());

    let mut times = Vec::new();
    let mut all = [0usize; 2];
    for tongue in [&ENGLISH, &UKRAINIAN, &RUSSIAN] {
        for (kind, label) in KINDS.iter().enumerate() {
            let (mut hits, mut asked) = (0, 0);
            for place in (0..PLACES).step_by(ASKED) {
                for topic in 0..tongue.topics.len() {
                    let (hit, took) = ask(&bases, company, info.id, tongue, place, topic, kind).await;
                    times.push(took);
                    asked += 1;
                    hits += usize::from(hit);
                }
            }
            println!("  {} {label}: hit at 5 {:.1} % of {asked}", tongue.code, 100.0 * hits as f64 / asked as f64);
            if kind < 2 {
                all = [all[0] + hits, all[1] + asked];
            }
        }
    }
    println!("  where a word is shared: hit at 5 {:.1} % of {}", 100.0 * all[0] as f64 / all[1] as f64, all[1]);
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!(
        "  lookups: {} one after the other, p50 {:.2?}, p99 {:.2?}, most {:.2?}",
        times.len(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
    store.close().await;
}

/// Turns that are measured of each kind.
const TURNS: usize = 40;

async fn wait(base: Base, delay_ms: u64) {
    let store = base.open().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let mut config = MockConfig::default();
    config.delays.llm_ttft_ms = delay_ms;
    let mock = MockOpenAi::start(config, listener).expect("it starts");
    let config = KnowledgeConfig { base_url: mock.base_url(), lookup_ms: 1000, ..KnowledgeConfig::default() };
    let bases = KnowledgeBases::open(store.clone(), &config).expect("an address");
    let company = store.add_company("Acme", &CompanySettings::default()).await.expect("a company").id;
    let made = store.add_knowledge_base(company, "All", "en").await.expect("a base");
    let NewBase::Made(info) = made else { panic!("too many bases") };
    let added = bases.add(company, info.id, "en.md", Bytes::from(ENGLISH.file(0..IN_ONE_FILE))).await;
    let Added::Taken(document) = added.expect("the store answers") else { panic!("it is new") };
    bases.index(document.id).await.expect("it is indexed");
    let documents = bases.of(company, &["All".into()]);
    let ask = |place: usize, kind: usize| {
        let query = ENGLISH.topics[place % 12].2[kind].replace("{n}", &ENGLISH.name(place % IN_ONE_FILE));
        Lookup { query, language: "en".into(), limit: 4, ..Lookup::default() }
    };
    documents.look_up(ask(0, 2)).await.expect("the first one reads the base");
    // What the caller still says, and recognition takes, after the last partial.
    for rest_ms in [None, Some(150), Some(500)] {
        let mut times = Vec::new();
        for turn in 0..TURNS {
            let ask = ask(turn, 0);
            let ahead = Ahead::new(documents.clone(), "en", 4);
            if let Some(rest_ms) = rest_ms {
                let guess = Guess { query: ask.query.to_lowercase(), bases: None, by_model: false };
                tokio::spawn(ahead.guess(guess).expect("nothing runs"));
                tokio::time::sleep(Duration::from_millis(rest_ms)).await;
            }
            let begun = Instant::now();
            ahead.look_up(ask).await.expect("the store answers");
            times.push(begun.elapsed());
        }
        times.sort_unstable();
        let how = rest_ms.map_or("not ahead".into(), |rest_ms| format!("ahead by {rest_ms} ms"));
        println!("  {how}: p50 {:.2?}, most {:.2?}", times[TURNS / 2], times[TURNS - 1]);
    }
    mock.stop().await;
    store.close().await;
}

/// Whether the passage of this place and topic is among the first five, and how long that took.
async fn ask(
    bases: &KnowledgeBases,
    company: Uuid,
    base: Uuid,
    tongue: &Tongue,
    place: usize,
    topic: usize,
    kind: usize,
) -> (bool, Duration) {
    let (heading, _, questions) = &tongue.topics[topic];
    let name = tongue.name(place);
    let query = questions[kind].replace("{n}", &name);
    let ask = Lookup { query, language: tongue.code.into(), limit: 5, ..Lookup::default() };
    let begun = Instant::now();
    let found = bases.search(company, base, &ask).await.expect("the store answers").expect("the base is there");
    let took = begun.elapsed();
    let right = format!("{name} > {heading}");
    (found.iter().any(|passage| passage.place == right), took)
}
