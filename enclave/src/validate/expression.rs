//! The expressions of `map`: every operation known, every argument a register of its class.

use super::Finding;
use crate::program::{DType, MAX_MAP_REGISTERS, Map, View};
use crate::refusal::Fault;

/// The class of a register: float32 or int64.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    F,
    I,
}
use Class::{F, I};

impl Class {
    fn of(view: &View) -> Class {
        if view.dtype == DType::F32 { F } else { I }
    }
}

const CONST_F: u32 = 0;
const CONST_I: u32 = 1;

/// Argument and result classes of an operation on registers.
fn signature(code: u32) -> Option<(&'static [Class], Class)> {
    Some(match code {
        2 => (&[I], F),
        3 => (&[F], I),
        10..=34 => (&[F], F),
        40..=48 => (&[F, F], F),
        60..=62 => (&[F, F], I),
        63..=65 => (&[F], I),
        70..=73 => (&[I], I),
        80..=96 => (&[I, I], I),
        100 => (&[I, F, F], F),
        101 => (&[I, I, I], I),
        _ => return None,
    })
}

/// The classes of the registers so far.
struct Registers {
    classes: [Class; MAX_MAP_REGISTERS],
    count: usize,
}

impl Registers {
    fn push(&mut self, class: Class) -> Result<(), Finding> {
        *self
            .classes
            .get_mut(self.count)
            .ok_or(("ops", Fault::MapRegisters))? = class;
        self.count += 1;
        Ok(())
    }

    fn get(&self, register: i64) -> Option<Class> {
        let index = usize::try_from(register).ok().filter(|&r| r < self.count)?;
        self.classes.get(index).copied()
    }
}

pub fn check(map: &Map) -> Result<(), Finding> {
    let mut registers = Registers {
        classes: [F; MAX_MAP_REGISTERS],
        count: 0,
    };
    for view in &map.inputs {
        if view.shape != map.output.shape {
            return Err(("inputs", Fault::ShapeMismatch));
        }
        registers.push(Class::of(view))?;
    }
    for op in &map.ops {
        let given = [op.x, i64::from(op.y), i64::from(op.z)];
        let result = match op.code {
            CONST_F if u32::try_from(op.x).is_err() => return Err(("ops", Fault::MapArgument)),
            CONST_F | CONST_I if op.y != 0 || op.z != 0 => {
                return Err(("ops", Fault::MapArgument));
            }
            CONST_F => F,
            CONST_I => I,
            code => {
                let (wanted, result) = signature(code).ok_or(("ops", Fault::MapCode))?;
                for (i, &register) in given.iter().enumerate() {
                    match wanted.get(i) {
                        Some(class) => {
                            let found =
                                registers.get(register).ok_or(("ops", Fault::MapArgument))?;
                            if found != *class {
                                return Err(("ops", Fault::MapClass));
                            }
                        }
                        None if register != 0 => return Err(("ops", Fault::MapArgument)),
                        None => {}
                    }
                }
                result
            }
        };
        registers.push(result)?;
    }
    let last = registers
        .count
        .checked_sub(1)
        .and_then(|i| registers.classes.get(i));
    match last {
        None => Err(("ops", Fault::MapRegisters)),
        Some(class) if *class != Class::of(&map.output) => Err(("output", Fault::MapClass)),
        Some(_) => Ok(()),
    }
}
