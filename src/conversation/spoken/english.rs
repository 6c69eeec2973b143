//! English number words, one for all who read or write them.

/// Zero to nineteen.
pub const UNITS: [&str; 20] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
];
/// By tens; nothing stands for 0 and 10.
pub const TENS: [&str; 10] = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];

/// "forty two", without the hyphen of writing. `None`: 100 and more.
pub fn below_hundred(number: u32) -> Option<String> {
    let (tens, unit) = (TENS.get(number as usize / 10)?, number as usize % 10);
    Some(match (number, unit) {
        (0..20, _) => UNITS[number as usize].to_owned(),
        (_, 0) => (*tens).to_owned(),
        _ => format!("{tens} {}", UNITS[unit]),
    })
}

/// 0 to 19.
pub fn unit(word: &str) -> Option<u32> {
    UNITS.iter().position(|&name| name == word).map(|number| number as u32)
}

/// 20, 30 … 90.
pub fn tens(word: &str) -> Option<u32> {
    TENS[2..].iter().position(|&name| name == word).map(|tens| tens as u32 * 10 + 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for number in 0..100 {
            let words = below_hundred(number).expect("it is below a hundred");
            let value = |word: &str| unit(word).or_else(|| tens(word)).expect("a word of a number");
            assert_eq!(words.split(' ').map(value).sum::<u32>(), number, "{words}");
        }
        assert_eq!((below_hundred(100), unit("twenty"), tens("")), (None, None, None));
    }
}
