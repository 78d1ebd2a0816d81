//! `load`: decrypts chunks into a dense buffer.

use crate::machine::Context;
use crate::program::Load;
use crate::refusal::Refusal;

pub fn run(load: &Load, cx: &mut Context) -> Result<(), Refusal> {
    let count: u64 = load.output.shape.iter().map(|&d| u64::from(d)).product();
    let size = (count * load.output.dtype.size()) as usize;
    for item in cx.worker.share(load.chunk_count as usize) {
        let chunk = cx.stream.chunk(load.first_chunk + item as u32)?;
        let chunk_size = size_of_val(chunk);
        // All chunks but the last have the first one's size, so this one's place follows from it;
        // the last starts where the others end.
        let start = if item + 1 < load.chunk_count as usize {
            item * chunk_size
        } else {
            let last_start = size.next_multiple_of(64).saturating_sub(chunk_size);
            if item == 0 { 0 } else { last_start }
        };
        let part = chunk_size.min(size.saturating_sub(start));
        for slot in 0..cx.batch.count() {
            let output = cx.batch.at(load.output.offset, slot);
            // SAFETY: `start + part <= size`, and the output's `size` bytes lie in each slot as
            // validated; the chunk is in staging or in the resident region, outside of all slots.
            unsafe {
                let from = chunk.as_ptr().cast::<u8>();
                core::ptr::copy_nonoverlapping(from, output.add(start), part);
            }
        }
    }
    Ok(())
}
