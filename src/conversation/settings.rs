//! The numbers of turn-taking (DESIGN §3). Each is a setting: globally in `[turn]`, and per agent by an override.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Declares the settings once: the struct with its defaults, and the struct of optional overrides.
macro_rules! settings {
    ($( $(#[$doc:meta])* $name:ident: $type:ty = $default:expr; )*) => {
        /// All numbers of turn-taking, resolved. Times are milliseconds (`_ms`) in files.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct TurnSettings { $( $(#[$doc])* pub $name: $type, )* }

        impl Default for TurnSettings {
            fn default() -> Self {
                Self { $( $name: $default, )* }
            }
        }

        /// What an agent (later: a workflow node) sets differently.
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct TurnOverrides {
            $( #[serde(skip_serializing_if = "Option::is_none")] pub $name: Option<$type>, )*
        }

        impl TurnSettings {
            /// These settings with what `overrides` names replaced.
            pub fn with(&self, overrides: &TurnOverrides) -> Self {
                let mut settings = self.clone();
                $( if let Some(value) = &overrides.$name { settings.$name = value.clone(); } )*
                settings
            }
        }
    };
}

settings! {
    /// Probability at or above which a packet counts towards the start of speech.
    start_probability: f32 = 0.60;
    /// Packets in a row at `start_probability` that start a turn or suspect a barge-in. One more costs 20 ms.
    start_packets: u32 = 3;
    /// Probability below which a packet is silence; silence is counted from the first such packet.
    end_probability: f32 = 0.35;
    /// Probability at or above which a packet counts as voiced while a barge-in waits for confirmation.
    voiced_probability: f32 = 0.50;
    /// Audio kept from before the start of speech and given to recognition: weak first consonants.
    pre_roll_ms: u64 = 300;
    /// Silence that ends a turn whose words are complete.
    wait_complete_ms: u64 = 300;
    /// Silence that ends a turn when nothing tells.
    wait_unknown_ms: u64 = 700;
    /// Silence that ends a turn that sounds unfinished ("I would like to book a").
    wait_unfinished_ms: u64 = 2000;
    /// The waits are multiplied by this where digits, a spelling or an address is expected.
    expect_digits_factor: f32 = 2.0;
    /// Silence after which a transcript is made and the model is started on it, unconfirmed. Less answers sooner and asks
    /// recognition more often: stops inside words are 40 to 80 ms long.
    speculate_after_ms: u64 = 40;
    /// Starts of a model on unconfirmed words in one turn; 0 switches speculation off.
    max_speculations: u32 = 3;
    /// Speech after which a partial transcript is asked for while the caller speaks; 0 = never.
    partial_every_ms: u64 = 800;
    /// A turn may be answered although recognition has not come back after this.
    transcript_limit_ms: u64 = 2500;
    /// Voice in which no words were found, after which the agent asks for them again; half as much when it has just asked
    /// something. 0 = never.
    repeat_after_voice_ms: u64 = 600;
    /// Times in a row that the agent asks so; then it waits.
    max_repeats: u32 = 2;
    /// Whether the caller may interrupt.
    barge_in: bool = true;
    /// A suspected barge-in without words is confirmed after this, if most packets were voiced. A drawn-out "okay" is 550 ms.
    confirm_after_ms: u64 = 600;
    /// Share of packets that must be voiced for that.
    confirm_voiced_share: f32 = 0.6;
    /// A suspected barge-in is denied after this much silence, and what was said goes on.
    deny_silence_ms: u64 = 200;
    /// A suspected barge-in that nothing confirmed is denied after this.
    deny_after_ms: u64 = 700;
    /// Time after the agent's first sound in which the caller cannot interrupt: echo of its own start.
    barge_in_grace_ms: u64 = 0;
    /// Echo: while the agent sounds and for 450 ms after, a packet softer than the agent's loudest by more than this many
    /// dB is not taken for the caller; 0 = off. A smaller value is deafer to soft callers who interrupt.
    echo_guard_db: f32 = 18.0;
    /// Characters that the first chunk of an answer must have before it is cut at a clause.
    first_chunk_chars: usize = 20;
    /// Sentences are merged up to this many characters for one synthesis.
    max_chunk_chars: usize = 200;
    /// The next chunk goes to synthesis when less than this is queued.
    synthesize_ahead_ms: u64 = 2500;
    /// "Are you there?" after this much silence of both sides; 0 = never.
    silence_prompt_ms: u64 = 10_000;
    /// Goodbye and hang-up after this much silence of the caller; 0 = never.
    silence_goodbye_ms: u64 = 30_000;
    /// Longest call; the agent says goodbye. 0 = no limit.
    max_call_ms: u64 = 30 * 60_000;
    /// Longest time on hold; then the call ends. 0 = no limit but that of the call.
    max_hold_ms: u64 = 10 * 60_000;
    /// Longest caller turn; then it is answered as it stands.
    max_turn_ms: u64 = 60_000;
    /// Rounds of tool calls in one turn.
    max_tool_steps: u32 = 4;
    /// Replies in a row that an engine failed to make before the call is ended; 0 = apologise for ever.
    max_engine_failures: u32 = 3;
    /// Time that one tool may take.
    tool_limit_ms: u64 = 5000;
    /// Silence of a model, from the confirmed turn on, after which the agent asks for a moment; 0 = never.
    filler_after_ms: u64 = 700;
}

impl TurnSettings {
    pub fn ms(value: u64) -> Duration {
        Duration::from_millis(value)
    }

    /// What is out of range or contradicts itself: one sentence each, with the key and the cure.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut require = |holds: bool, fault: &str| {
            if !holds {
                faults.push(fault.to_owned());
            }
        };
        let share = 0.0..=1.0;
        require(share.contains(&self.start_probability), "turn.start_probability must be from 0.0 to 1.0");
        require(share.contains(&self.end_probability), "turn.end_probability must be from 0.0 to 1.0");
        require(share.contains(&self.voiced_probability), "turn.voiced_probability must be from 0.0 to 1.0");
        require(share.contains(&self.confirm_voiced_share), "turn.confirm_voiced_share must be from 0.0 to 1.0");
        require(
            self.end_probability <= self.start_probability,
            "turn.end_probability must not be above turn.start_probability, or speech would end as it starts",
        );
        require((1..=50).contains(&self.start_packets), "turn.start_packets must be from 1 to 50 (20 ms each)");
        require(
            (1.0..=10.0).contains(&self.expect_digits_factor),
            "turn.expect_digits_factor must be from 1.0 to 10.0; 1.0 switches it off",
        );
        require((0.0..=60.0).contains(&self.echo_guard_db), "turn.echo_guard_db must be from 0 (off) to 60");
        require(self.pre_roll_ms <= 2000, "turn.pre_roll_ms must be at most 2000");
        require(
            self.wait_complete_ms <= self.wait_unknown_ms && self.wait_unknown_ms <= self.wait_unfinished_ms,
            "turn.wait_complete_ms, wait_unknown_ms and wait_unfinished_ms must not fall, in this order",
        );
        require(self.wait_unfinished_ms <= 30_000, "turn.wait_unfinished_ms must be at most 30000");
        require(self.max_speculations <= 10, "turn.max_speculations must be at most 10; each may cost a model's reply");
        require(
            self.first_chunk_chars <= self.max_chunk_chars,
            "turn.first_chunk_chars must not be above turn.max_chunk_chars",
        );
        require((1..=4000).contains(&self.max_chunk_chars), "turn.max_chunk_chars must be from 1 to 4000");
        require(
            self.silence_prompt_ms == 0
                || self.silence_goodbye_ms == 0
                || self.silence_prompt_ms < self.silence_goodbye_ms,
            "turn.silence_prompt_ms must be below turn.silence_goodbye_ms, or one of them 0 (off)",
        );
        require((1000..=600_000).contains(&self.max_turn_ms), "turn.max_turn_ms must be from 1000 to 600000");
        require(self.repeat_after_voice_ms <= 60_000, "turn.repeat_after_voice_ms must be at most 60000; 0 = never");
        require(self.max_repeats <= 10, "turn.max_repeats must be at most 10");
        require(self.max_tool_steps <= 50, "turn.max_tool_steps must be at most 50");
        require((1..=600_000).contains(&self.tool_limit_ms), "turn.tool_limit_ms must be from 1 to 600000");
        require(self.filler_after_ms <= 60_000, "turn.filler_after_ms must be at most 60000; 0 = never");
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_have_no_fault_and_every_fault_is_told() {
        assert_eq!(TurnSettings::default().faults(), Vec::<String>::new());
        let settings =
            TurnSettings { start_probability: 0.2, start_packets: 0, tool_limit_ms: 0, ..Default::default() };
        assert_eq!(settings.faults().len(), 3, "{:?}", settings.faults());
        let settings = TurnSettings { start_probability: f32::NAN, ..Default::default() };
        assert!(!settings.faults().is_empty());
    }
}
