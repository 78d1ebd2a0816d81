//! From the operations of an expression to the steps that compute it: what can be done in one
//! pass over a tile is one step.

use crate::program::{MAX_MAP_REGISTERS, MapOp};

/// What a step computes before it clamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing: the step has become part of a later one.
    Merged,
    Move,
    Add,
    Subtract,
    Multiply,
    /// `x * y + z`, rounded once where the instruction set can.
    MultiplyAdd,
    /// The operation of this code, as it is.
    Code(u32),
}

/// Computes register `to` from registers `x`, `y` and `z`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    pub kind: Kind,
    pub to: usize,
    pub x: usize,
    pub y: usize,
    pub z: usize,
    /// The result is `min(max(value, low), high)`, NaN staying NaN; not for codes.
    pub low: f32,
    pub high: f32,
}

const NOTHING: Step = Step {
    kind: Kind::Merged,
    to: 0,
    x: 0,
    y: 0,
    z: 0,
    low: f32::NEG_INFINITY,
    high: f32::INFINITY,
};

/// A constant register's value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Constant {
    Float(f32),
    Integer(i64),
}

/// The steps of an expression, and the constants they read.
pub struct Plan {
    pub constants: [Option<Constant>; MAX_MAP_REGISTERS],
    /// At the place of the operation that ends it; the others are merged.
    steps: [Step; MAX_MAP_REGISTERS],
    uses: [u32; MAX_MAP_REGISTERS],
    input_count: usize,
}

impl Plan {
    pub fn new(input_count: usize, ops: &[MapOp]) -> Self {
        let mut plan = Plan {
            constants: [None; MAX_MAP_REGISTERS],
            steps: [NOTHING; MAX_MAP_REGISTERS],
            uses: [0; MAX_MAP_REGISTERS],
            input_count,
        };
        for op in ops.iter().filter(|op| op.code > 1) {
            // Arguments that an operation does not have are 0: register 0 may count too many,
            // which only keeps it from being merged.
            for register in [op.x as usize, op.y as usize, op.z as usize] {
                if let Some(uses) = plan.uses.get_mut(register) {
                    *uses += 1;
                }
            }
        }
        for (to, op) in (input_count..).zip(ops) {
            if op.code > 1 {
                let step = plan.step(to, op);
                if let Some(place) = plan.steps.get_mut(to) {
                    *place = step;
                }
            } else if let Some(place) = plan.constants.get_mut(to) {
                *place = Some(if op.code == 0 {
                    Constant::Float(f32::from_bits(op.x as u32))
                } else {
                    Constant::Integer(op.x)
                });
            }
        }
        plan
    }

    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        let steps = self.steps.iter().skip(self.input_count);
        steps.filter(|step| step.kind != Kind::Merged)
    }

    fn step(&mut self, to: usize, op: &MapOp) -> Step {
        let (x, y, z) = (op.x as usize, op.y as usize, op.z as usize);
        let plain = |kind| Step {
            kind,
            to,
            x,
            y,
            z,
            ..NOTHING
        };
        match op.code {
            40 => {
                for (product, other) in [(x, y), (y, x)] {
                    let merged = self.merge(product, |s| {
                        s.kind == Kind::Multiply && s.low == NOTHING.low && s.high == NOTHING.high
                    });
                    if let Some(product) = merged {
                        return Step {
                            kind: Kind::MultiplyAdd,
                            to,
                            z: other,
                            ..product
                        };
                    }
                }
                plain(Kind::Add)
            }
            41 => plain(Kind::Subtract),
            42 => plain(Kind::Multiply),
            44 | 45 => {
                for (bound, other) in [(x, y), (y, x)] {
                    if let Some(bound) = self.bound(bound) {
                        return self.clamp(to, other, bound, op.code == 45);
                    }
                }
                plain(Kind::Code(op.code))
            }
            code => plain(Kind::Code(code)),
        }
    }

    /// The constant in `register`, if it is a number.
    fn bound(&self, register: usize) -> Option<f32> {
        match self.constants.get(register) {
            Some(Some(Constant::Float(value))) if !value.is_nan() => Some(*value),
            _ => None,
        }
    }

    fn clamp(&mut self, to: usize, x: usize, bound: f32, below: bool) -> Step {
        // The upper bound is applied last, so no lower one may follow it.
        let clampable = |s: &Step| match s.kind {
            Kind::Merged | Kind::Code(_) => false,
            _ => !below || s.high == NOTHING.high,
        };
        let mut step = self.merge(x, clampable).unwrap_or(Step {
            kind: Kind::Move,
            x,
            ..NOTHING
        });
        step.to = to;
        if below {
            step.low = step.low.max(bound);
        } else {
            step.high = step.high.min(bound);
        }
        step
    }

    /// Takes the step that computes `register` if that is `wanted` and its result is used once.
    fn merge(&mut self, register: usize, wanted: impl Fn(&Step) -> bool) -> Option<Step> {
        if self.uses.get(register) != Some(&1) {
            return None;
        }
        let place = self.steps.get_mut(register).filter(|step| wanted(step))?;
        Some(core::mem::replace(place, NOTHING))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::op;

    fn kinds(plan: &Plan) -> Vec<Kind> {
        plan.steps().map(|step| step.kind).collect()
    }

    #[test]
    fn affine_and_clamp_are_one_step() {
        let zero = op(0, 0, 0, 0);
        let six = op(0, 6f32.to_bits().into(), 0, 0);
        let ops = [
            op(42, 0, 1, 0),
            op(40, 2, 3, 0),
            zero,
            op(45, 5, 4, 0),
            six,
            op(44, 6, 7, 0),
        ];
        let plan = Plan::new(3, &ops);
        let steps: Vec<_> = plan.steps().copied().collect();
        let expected = Step {
            kind: Kind::MultiplyAdd,
            to: 8,
            x: 0,
            y: 1,
            z: 2,
            low: 0.0,
            high: 6.0,
        };
        assert_eq!(steps, [expected]);
    }

    #[test]
    fn what_is_used_twice_or_bounded_from_above_first_stays() {
        let one = op(0, 1f32.to_bits().into(), 0, 0);
        // The product is an argument of the sum and of what follows.
        let plan = Plan::new(2, &[op(42, 0, 1, 0), op(40, 2, 1, 0), op(41, 3, 2, 0)]);
        assert_eq!(kinds(&plan), [Kind::Multiply, Kind::Add, Kind::Subtract]);
        // max(min(x, 1), 1) and max(x, NaN).
        let plan = Plan::new(1, &[one, op(44, 0, 1, 0), op(45, 2, 1, 0)]);
        assert_eq!(kinds(&plan), [Kind::Move, Kind::Move]);
        let nan = op(0, f32::NAN.to_bits().into(), 0, 0);
        assert_eq!(
            kinds(&Plan::new(1, &[nan, op(45, 0, 1, 0)])),
            [Kind::Code(45)]
        );
    }
}
