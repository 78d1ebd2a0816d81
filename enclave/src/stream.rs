//! A worker's way to the parameters: its staging buffer, and the chunk it holds decrypted.

use crate::layout::Placed;
use crate::pool::Pool;
use crate::refusal::Refusal;
use crate::sealed::Parameters;

/// One worker's staging buffer and opener, for one run.
pub struct Stream<'a> {
    pool: &'a Pool,
    program: &'a Placed,
    parameters: &'a Parameters,
    staging_offset: u64,
    held: Option<u32>,
}

impl<'a> Stream<'a> {
    /// The stream of worker `index`, holding nothing.
    pub fn new(
        pool: &'a Pool,
        program: &'a Placed,
        parameters: &'a Parameters,
        index: usize,
    ) -> Self {
        let layout = &program.layout;
        // Validated: the stagings of all threads lie inside the pool. A worker beyond them
        // (there is none) gets an offset outside, and no chunk.
        let staging_offset = if index < layout.thread_count as usize {
            layout.staging_offset() + layout.staging_size * index as u64
        } else {
            pool.size()
        };
        Stream {
            pool,
            program,
            parameters,
            staging_offset,
            held: None,
        }
    }

    /// The decrypted chunk: in place if resident, else in staging, where the next call may
    /// replace it.
    #[allow(unsafe_code)]
    pub fn chunk(&mut self, index: u32) -> Result<&[f32], Refusal> {
        let refusal = Refusal::Parameters { chunk: index };
        let chunk = self.program.chunks.get(index as usize).ok_or(refusal)?;
        if let Some(offset) = self.program.resident_offset(index) {
            // SAFETY: resident chunks are decrypted before the first run; the validator lets no
            // instruction write to their region. Their offsets are multiples of 64.
            return Ok(unsafe { self.pool.floats(offset, chunk.size) });
        }
        if self.held != Some(index) {
            self.held = None;
            // SAFETY: this staging buffer is this worker's alone: the validator lets no
            // instruction reach the staging region, and the borrow of `self` ends any slice
            // handed out before.
            let staging = unsafe { self.pool.bytes_mut(self.staging_offset, chunk.size) };
            self.parameters.open(index, staging)?;
            self.held = Some(index);
        }
        // SAFETY: as above; the staging region is aligned to 64 and is not written before the
        // next call, which needs `self` exclusively.
        Ok(unsafe { self.pool.floats(self.staging_offset, chunk.size) })
    }
}
