//! Stand-in.
#[derive(Clone, Copy)]
pub enum Fixed { AreYouThere, SilenceGoodbye, TimeIsUp, PleaseRepeat, Apology }
pub fn phrase(_language: &str, which: Fixed) -> &'static str {
    match which { Fixed::AreYouThere => "Are you still there?", Fixed::SilenceGoodbye => "Goodbye.", Fixed::TimeIsUp => "Our time is up, goodbye.", Fixed::PleaseRepeat => "Sorry, could you say that again?", Fixed::Apology => "Sorry, something went wrong." }
}
