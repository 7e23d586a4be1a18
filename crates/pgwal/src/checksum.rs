//! CRC-32C of records.
//!
//! Most records are shorter than 200 bytes. For those the library spends more time on preparing than on summing; where
//! the processor has an instruction for it, they are summed word by word, as the server does it.

/// From here on the library, which sums three parts of the bytes at once, is faster.
#[cfg(target_arch = "x86_64")]
const LONG: usize = 1024;

/// The checksum of a record: first of what stands behind the header, then of the header up to the checksum's own place
/// (PostgreSQL, `src/backend/access/transam/xloginsert.c`, `XLogRecordAssemble`).
#[inline]
pub(crate) fn of_record(head: &[u8; 20], rest: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if rest.len() < LONG && std::arch::is_x86_feature_detected!("sse4.2") {
        #[allow(unsafe_code, reason = "the processor was asked whether it has the instruction")]
        // SAFETY: the only requirement is that the processor has SSE 4.2.
        return unsafe { short(head, rest) };
    }
    crc32c::crc32c_append(crc32c::crc32c(rest), head)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
fn short(head: &[u8; 20], rest: &[u8]) -> u32 {
    // Where two sums follow each other, what inverts them in between cancels out.
    !add(add(u32::MAX, rest), head)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
fn add(sum: u32, bytes: &[u8]) -> u32 {
    use std::arch::x86_64::{_mm_crc32_u8, _mm_crc32_u32, _mm_crc32_u64};
    let (words, odd) = bytes.as_chunks::<8>();
    let sum = words.iter().fold(u64::from(sum), |sum, word| {
        _mm_crc32_u64(sum, u64::from_le_bytes(*word))
    });
    let (words, odd) = odd.as_chunks::<4>();
    let sum = words
        .iter()
        .fold(sum as u32, |sum, word| _mm_crc32_u32(sum, u32::from_le_bytes(*word)));
    odd.iter().fold(sum, |sum, byte| _mm_crc32_u8(sum, *byte))
}

#[cfg(test)]
mod tests {
    use super::of_record;

    #[test]
    fn it_is_the_same_sum_for_every_length() {
        let bytes: Vec<u8> = (0..5000u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect();
        let (head, rest) = bytes.split_first_chunk::<20>().expect("enough");
        for length in (0..1100).chain([4000, 4980]) {
            let rest = &rest[(length % 7).min(length)..length];
            assert_eq!(
                of_record(head, rest),
                crc32c::crc32c_append(crc32c::crc32c(rest), head),
                "{length} bytes"
            );
        }
    }
}
