//! The plan ladder: which chunks are optional, and what each rung of the header says of them.

use super::MAX_POOL_SIZE;
use crate::program::Program;
use crate::refusal::{Fault, Place, Refusal};
use crate::sealed::Header;

const MAX_RUNGS: usize = 64;

/// Checks the order, and every rung against it. The regions have been checked.
pub fn check(program: &Program, header: &Header) -> Result<(), Refusal> {
    let at = |place| {
        move |fault| Refusal::Invalid {
            place,
            operand: "",
            fault,
        }
    };
    let regions = &program.regions;
    if header.slot_size != regions.slot_size() || header.thread_count != regions.thread_count {
        return Err(at(Place::Layout)(Fault::HeaderDisagrees));
    }
    let sizes = order(program).map_err(at(Place::Layout))?;
    let count = header.rungs.len();
    if count == 0 || count > MAX_RUNGS || header.rung as usize >= count {
        return Err(at(Place::Layout)(Fault::RungCount));
    }
    // By how many are resident: the largest of those that stream.
    let mut stagings = vec![0; sizes.len() + 1];
    let mut largest = 0;
    for (staging, &size) in stagings.iter_mut().rev().skip(1).zip(sizes.iter().rev()) {
        largest = size.max(largest);
        *staging = largest;
    }
    let (mut kept, mut resident_size) = (0, regions.fixed_size);
    for (number, rung) in header.rungs.iter().enumerate() {
        let refuse = at(Place::Rung(number));
        let resident_count = rung.resident_count as usize;
        let more = sizes.get(kept..resident_count);
        let (Some(more), Some(&staging_size)) = (more, stagings.get(resident_count)) else {
            return Err(refuse(Fault::RungOrder));
        };
        if number > 0 && more.is_empty() {
            return Err(refuse(Fault::RungOrder));
        }
        // At most 2^20 sizes of at most 2^40, and at most 256 threads: nothing overflows.
        resident_size += more.iter().sum::<u64>();
        kept = resident_count;
        if (rung.resident_size, rung.staging_size) != (resident_size, staging_size) {
            return Err(refuse(Fault::RungSize));
        }
        let stagings_size = staging_size * u64::from(regions.thread_count);
        if regions.slot_size() + resident_size + stagings_size > MAX_POOL_SIZE {
            return Err(refuse(Fault::PoolTooLarge));
        }
    }
    Ok(())
}

/// The sizes of the optional chunks in order, each known to be at most [`MAX_POOL_SIZE`].
fn order(program: &Program) -> Result<Vec<u64>, Fault> {
    let mut listed: Vec<bool> = program
        .chunks
        .iter()
        .map(|chunk| chunk.fixed_offset.is_some())
        .collect();
    let mut sizes = Vec::with_capacity(program.order.len().min(listed.len()));
    for &index in &program.order {
        match (
            listed.get_mut(index as usize),
            program.chunks.get(index as usize),
        ) {
            (Some(seen), Some(chunk)) if !*seen => {
                if chunk.size > MAX_POOL_SIZE {
                    return Err(Fault::ChunkSize);
                }
                *seen = true;
                sizes.push(chunk.size);
            }
            _ => return Err(Fault::Order),
        }
    }
    if listed.contains(&false) {
        return Err(Fault::Order);
    }
    Ok(sizes)
}
