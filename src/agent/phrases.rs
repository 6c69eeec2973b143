//! What an agent says of its own accord, without a model: few and fixed, so that a call keeps them as ready sound.

/// The fixed phrases of one language.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phrases {
    /// After a long silence.
    pub are_you_there: &'static str,
    /// Before hanging up on a caller who says nothing.
    pub goodbye_after_silence: &'static str,
    /// Recognition gave nothing for a turn.
    pub not_understood: &'static str,
    /// An engine and its fallback failed in mid-turn.
    pub trouble: &'static str,
    /// The longest time of a call is over.
    pub time_is_up: &'static str,
    /// The person that the caller was to be handed to did not answer.
    pub nobody_free: &'static str,
    /// A model takes long to answer.
    pub one_moment: &'static str,
}

const EN: Phrases = Phrases {
    are_you_there: "Are you still there?",
    goodbye_after_silence: "I can't hear you any more. Please call again. Goodbye!",
    not_understood: "Sorry, I did not catch that. Could you say it again?",
    trouble: "I am sorry, something is not working right now. Please call again a little later.",
    time_is_up: "I am sorry, our time is up. Please call again if there is anything else. Goodbye!",
    nobody_free: "I am sorry, nobody can answer right now. Your wish is noted, and you will be called back. Goodbye!",
    one_moment: "One moment, please.",
};

const UK: Phrases = Phrases {
    are_you_there: "Ви ще на лінії?",
    goodbye_after_silence: "Я вас більше не чую. Будь ласка, зателефонуйте ще раз. До побачення!",
    not_understood: "Вибачте, я не зрозуміла. Повторіть, будь ласка.",
    trouble: "Вибачте, зараз щось не працює. Будь ласка, зателефонуйте трохи пізніше.",
    time_is_up: "Вибачте, наш час вийшов. Зателефонуйте ще раз, якщо будуть питання. До побачення!",
    nobody_free: "На жаль, зараз ніхто не може відповісти. Ваше прохання записано, вам зателефонують. До побачення!",
    one_moment: "Хвилинку, будь ласка.",
};

const RU: Phrases = Phrases {
    are_you_there: "Вы ещё на линии?",
    goodbye_after_silence: "Я вас больше не слышу. Пожалуйста, позвоните ещё раз. До свидания!",
    not_understood: "Извините, я не поняла. Повторите, пожалуйста.",
    trouble: "Извините, сейчас что-то не работает. Пожалуйста, позвоните чуть позже.",
    time_is_up: "Извините, наше время вышло. Позвоните ещё раз, если будут вопросы. До свидания!",
    nobody_free: "К сожалению, сейчас никто не может ответить. Ваша просьба записана, вам перезвонят. До свидания!",
    one_moment: "Минутку, пожалуйста.",
};

impl Phrases {
    /// The phrases of a language (`uk`, `ru-RU`); English where there are none.
    pub fn of(language: &str) -> &'static Phrases {
        match language.split(['-', '_']).next().unwrap_or_default() {
            first if first.eq_ignore_ascii_case("uk") => &UK,
            first if first.eq_ignore_ascii_case("ru") => &RU,
            _ => &EN,
        }
    }

    /// All of them, for making their sound ahead.
    pub fn all(&self) -> [&'static str; 7] {
        [
            self.are_you_there,
            self.goodbye_after_silence,
            self.not_understood,
            self.trouble,
            self.time_is_up,
            self.nobody_free,
            self.one_moment,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_language_has_its_phrases_and_others_have_the_english_ones() {
        assert_eq!(Phrases::of("en-GB"), &EN);
        assert_eq!(Phrases::of("uk"), &UK);
        assert_eq!(Phrases::of("RU_ru"), &RU);
        assert_eq!(Phrases::of("de"), &EN);
        assert_eq!(Phrases::of(""), &EN);
    }

    #[test]
    fn every_phrase_is_short_enough_for_one_breath() {
        for language in ["en", "uk", "ru"] {
            for phrase in Phrases::of(language).all() {
                assert!((5..120).contains(&phrase.chars().count()), "{phrase:?}");
            }
        }
    }
}
