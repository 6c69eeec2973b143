//! Stand-in.
pub struct Speakable { text: String, first: bool }
impl Speakable {
    pub fn new(_first: usize, _max: usize) -> Self { Self { text: String::new(), first: true } }
    pub fn push(&mut self, text: &str) -> Vec<String> {
        self.text.push_str(text);
        let mut out = Vec::new();
        while let Some(at) = self.text.find(|c| matches!(c, '.' | '?' | '!')) {
            let rest = self.text.split_off(at + 1);
            out.push(std::mem::replace(&mut self.text, rest).trim().to_owned());
            self.first = false;
        }
        out
    }
    pub fn finish(self) -> Vec<String> { let t = self.text.trim().to_owned(); if t.is_empty() { vec![] } else { vec![t] } }
}
pub fn heard_text(text: &str, fraction: f32) -> &str {
    let n = (text.len() as f32 * fraction) as usize;
    let n = (0..=n.min(text.len())).rev().find(|&n| text.is_char_boundary(n) && (n == text.len() || text[n..].starts_with(' '))).unwrap_or(0);
    &text[..n]
}
