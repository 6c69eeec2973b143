//! G.711 A-law for the simulated caller. As with mu-law, the codec under test is not used here.

/// Decoded values of all 256 codes (ITU-T G.711, table 1, scaled to 16 bits).
static DECODED: [i16; 256] = {
    let mut table = [0; 256];
    let mut code = 0;
    while code < 256 {
        table[code] = expand(code as u8);
        code += 1;
    }
    table
};

/// Even bits are inverted on the wire.
const EVEN_BITS: u8 = 0x55;

const fn expand(code: u8) -> i16 {
    let code = code ^ EVEN_BITS;
    let mantissa = ((code & 0x0F) as i16) << 4;
    let magnitude = match (code >> 4) & 7 {
        0 => mantissa + 8,
        segment => (mantissa + 0x108) << (segment - 1),
    };
    if code & 0x80 != 0 { magnitude } else { -magnitude }
}

/// One code to one sample.
pub fn decode(code: u8) -> i16 {
    DECODED[usize::from(code)]
}

/// One sample to one code: 12 bits of magnitude, the segment the place of the highest bit.
pub fn encode(sample: i16) -> u8 {
    let (sign, magnitude) = if sample < 0 { (0, !sample >> 4) } else { (0x80, sample >> 4) };
    let segment = (11 - (magnitude as u16).leading_zeros().saturating_sub(5)).saturating_sub(4);
    let mantissa = match segment {
        0 => magnitude & 0x1F,
        segment => (magnitude >> (segment - 1)) & 0x0F | (segment as i16) << 4,
    };
    (sign | mantissa as u8) ^ EVEN_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_decoding_and_encoding() {
        for code in 0..=255u8 {
            assert_eq!(encode(decode(code)), code, "code {code:#04x} is {}", decode(code));
        }
    }

    #[test]
    fn known_values_of_the_standard_decode_as_printed_there() {
        assert_eq!(decode(0xD5), 8);
        assert_eq!(decode(0x55), -8);
        assert_eq!(decode(0xAA), 32_256);
        assert_eq!(decode(0x2A), -32_256);
    }

    #[test]
    fn a_sample_comes_back_within_half_a_step_of_its_segment() {
        for sample in (i16::MIN..=i16::MAX).step_by(7) {
            let back = i32::from(decode(encode(sample)));
            let error = (back - i32::from(sample)).abs();
            let clipped = (i32::from(sample).abs() - 32_256).max(0);
            let step = (i32::from(sample).abs() / 16).max(16);
            assert!(error <= step / 2 + 8 + clipped, "{sample} came back as {back}");
        }
    }
}
