//! A tenant that touches pages as it is told, and checks what is in them.
//!
//! Every page holds a pattern of its number and of how often it was written; a page never written
//! holds zeros. Each touch checks the whole page; a write then writes the whole page.

use crate::store::PAGE_SIZE;
use crate::tenant::EpcMemory;
use serde::Serialize;
use std::io::{self, BufRead};
use std::path::Path;

/// What the tenant found.
#[derive(Debug, Serialize)]
pub struct Found {
    touches: u64,
    /// Touches that found another content than was written last.
    wrong: u64,
}

/// Touches pages of `page_count` in the EPC of the emulator at `path`: each line of `orders` is
/// `r PAGE` or `w PAGE`.
pub fn replay(path: &Path, page_count: usize, orders: impl BufRead) -> io::Result<Found> {
    let mut memory = EpcMemory::map(path, (page_count * PAGE_SIZE) as u64)?;
    let mut versions = vec![0u32; page_count];
    let mut found = Found {
        touches: 0,
        wrong: 0,
    };
    for line in orders.lines() {
        let line = line?;
        let (write, number) = order(&line, page_count).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("no order: {line:?}"))
        })?;
        let page = &mut memory.bytes_mut()[number * PAGE_SIZE..][..PAGE_SIZE];
        let version = &mut versions[number];
        found.touches += 1;
        found.wrong += u64::from(!holds(page, number, *version));
        if write {
            *version += 1;
            fill(page, number, *version);
        }
    }
    Ok(found)
}

/// Whether to write, and the page.
fn order(line: &str, page_count: usize) -> Option<(bool, usize)> {
    let (how, number) = line.trim_end().split_once(' ')?;
    let number = number.parse().ok().filter(|&n| n < page_count)?;
    match how {
        "r" => Some((false, number)),
        "w" => Some((true, number)),
        _ => None,
    }
}

/// The words of a page.
fn pattern(number: usize, version: u32) -> impl Iterator<Item = u64> {
    let seed = ((number as u64) << 32 | u64::from(version)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (1..=(PAGE_SIZE / 8) as u64).map(move |index| {
        if version == 0 {
            return 0;
        }
        (seed ^ index).wrapping_mul(0xD134_2543_DE82_EF95)
    })
}

fn holds(page: &[u8], number: usize, version: u32) -> bool {
    page.chunks_exact(8)
        .zip(pattern(number, version))
        .all(|(word, expected)| word == expected.to_le_bytes())
}

fn fill(page: &mut [u8], number: usize, version: u32) {
    for (word, value) in page.chunks_exact_mut(8).zip(pattern(number, version)) {
        word.copy_from_slice(&value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_holds_what_was_written_and_nothing_else() {
        let mut page = [0; PAGE_SIZE];
        assert!(holds(&page, 5, 0) && !holds(&page, 5, 1));
        fill(&mut page, 5, 1);
        assert!(holds(&page, 5, 1));
        assert!(!holds(&page, 5, 0) && !holds(&page, 5, 2) && !holds(&page, 6, 1));
        page[PAGE_SIZE - 1] ^= 1;
        assert!(!holds(&page, 5, 1));
    }

    #[test]
    fn orders_are_in_bounds() {
        assert_eq!(order("r 3", 4), Some((false, 3)));
        assert_eq!(order("w 0\n", 4), Some((true, 0)));
        for line in ["", "r", "x 1", "r 4", "r -1", "w 1 2"] {
            assert_eq!(order(line, 4), None, "{line}");
        }
    }
}
