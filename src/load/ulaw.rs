//! G.711 mu-law for the simulated caller. The codec under test is not used here, so that a fault in it is heard and
//! not undone.

/// Decoded values of all 256 codes (ITU-T G.711, table 2, scaled to 16 bits).
static DECODED: [i16; 256] = {
    let mut table = [0; 256];
    let mut code = 0;
    while code < 256 {
        table[code] = expand(code as u8);
        code += 1;
    }
    table
};

const fn expand(code: u8) -> i16 {
    let code = !code;
    let magnitude = ((((code & 0x0F) as i16) << 3) + 132) << ((code >> 4) & 7);
    if code & 0x80 != 0 { 132 - magnitude } else { magnitude - 132 }
}

/// One code to one sample.
pub fn decode(code: u8) -> i16 {
    DECODED[usize::from(code)]
}

/// One sample to one code. 132 is the bias of the segments, 32635 the largest value that they hold with it.
pub fn encode(sample: i16) -> u8 {
    let sign = if sample < 0 { 0x80 } else { 0 };
    let biased = i32::from(sample).abs().min(32_635) + 132;
    let segment = 24 - biased.leading_zeros().min(24);
    let mantissa = (biased >> (segment + 3)) & 0x0F;
    !(sign | (segment as u8) << 4 | mantissa as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_decoding_and_encoding() {
        for code in 0..=255u8 {
            // Negative zero decodes to zero, which encodes as positive zero.
            let expected = if code == 0x7F { 0xFF } else { code };
            assert_eq!(encode(decode(code)), expected, "code {code:#04x}");
        }
    }

    #[test]
    fn known_values_of_the_standard_decode_as_printed_there() {
        assert_eq!(decode(0xFF), 0);
        assert_eq!(decode(0x80), 32_124);
        assert_eq!(decode(0x00), -32_124);
        assert_eq!(decode(0xEF), 132);
    }

    #[test]
    fn a_sample_comes_back_within_half_a_step_of_its_segment() {
        for sample in (i16::MIN..=i16::MAX).step_by(7) {
            let back = i32::from(decode(encode(sample)));
            let error = (back - i32::from(sample)).abs();
            let clipped = (i32::from(sample).abs() - 32_124).max(0);
            let step = (i32::from(sample).abs() + 132) / 16;
            assert!(error <= step / 2 + 4 + clipped, "{sample} came back as {back}");
        }
    }
}
