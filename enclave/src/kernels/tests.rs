//! Kernels against plain loops over odd shapes and strides.

use super::math;
use crate::program::{
    Copy, DType, Gather, Instruction, Load, Map, MatMul, Pool, PoolKind, Reduce, ReduceKind, View,
};
use crate::testing::*;

#[test]
fn split_covers_a_range_evenly() {
    for (length, parts) in [(49, 4), (3, 5), (0, 2), (10, 1)] {
        let pieces: Vec<_> = (0..parts)
            .map(|i| super::split(&(7..7 + length), parts, i))
            .collect();
        let all: Vec<usize> = pieces.iter().cloned().flatten().collect();
        assert_eq!(all, (7..7 + length).collect::<Vec<_>>());
        let lengths = pieces.iter().map(|p| p.len());
        assert!(lengths.clone().max().unwrap() - lengths.min().unwrap() <= 1);
    }
}

#[test]
fn elementary_functions_are_accurate() {
    let close = |name: &str, x: f32, actual: f32, expected: f64| {
        let error = (f64::from(actual) - expected).abs();
        assert!(
            error <= 4e-7 * expected.abs() + 1e-44 || f64::from(actual) == expected as f32 as f64,
            "{name}({x}) = {actual}, not {expected}"
        );
    };
    for i in -40_000..40_000 {
        let x = i as f32 * 0.0026;
        let wide = f64::from(x);
        close("exp", x, math::exp(x), wide.exp());
        if x > -80.0 {
            close("sigmoid", x, math::sigmoid(x), 1.0 / (1.0 + (-wide).exp()));
        }
        close("tanh", x, math::tanh(x), wide.tanh());
    }
    // Values of the error function to ten digits (Abramowitz and Stegun, table 7.1).
    for (x, value) in [
        (0.0, 0.0),
        (0.02, 0.022_564_574_7),
        (0.5, 0.520_499_877_8),
        (0.9, 0.796_908_212_4),
        (1.0, 0.842_700_792_9),
        (1.5, 0.966_105_146_5),
        (2.0, 0.995_322_265_0),
        (4.0, 0.999_999_984_6),
    ] {
        close("erf", x, math::erf(x), value);
        close("erf", -x, math::erf(-x), -value);
    }
    assert!(math::exp(f32::NAN).is_nan() && math::tanh(f32::NAN).is_nan());
    assert!(math::sigmoid(f32::NAN).is_nan() && math::erf(f32::NAN).is_nan());
    assert_eq!(math::exp(f32::INFINITY), f32::INFINITY);
    assert_eq!(math::exp(f32::NEG_INFINITY), 0.0);
    assert_eq!(math::sigmoid(f32::NEG_INFINITY), 0.0);
    assert_eq!(math::tanh(f32::INFINITY), 1.0);
}

#[test]
fn map_broadcasts_and_reverses() {
    let inputs = noise(4000, 1);
    for shape in [
        vec![3u32, 5, 7],
        vec![1],
        vec![2, 300],
        vec![40, 3, 2],
        vec![9, 130],
    ] {
        let rank = shape.len();
        let output = floats(output_at(inputs.len()), &shape);
        let a = floats(0, &shape);
        // The last dimension backwards, all others broadcast.
        let mut strides = vec![0; rank];
        strides[rank - 1] = -1;
        let b = view(
            u64::from(shape[rank - 1] - 1) * 4,
            DType::F32,
            &shape,
            &strides,
        );
        let map = Instruction::Map(Map {
            inputs: vec![a.clone(), b.clone()],
            output: output.clone(),
            // (a + b) * a, clamped below at 0.1
            ops: vec![
                op(40, 0, 1, 0),
                op(42, 2, 0, 0),
                op(0, 0.1f32.to_bits().into(), 0, 0),
                op(45, 3, 4, 0),
            ],
        });
        let expected: Vec<f32> = indices(&shape)
            .iter()
            .map(|i| {
                let (a, b) = (inputs[element(&a, i)], inputs[element(&b, i)]);
                ((a + b) * a).max(0.1)
            })
            .collect();
        close(&run_floats(&map, &inputs, expected.len()), &expected);
    }
}

#[test]
fn map_works_in_place_on_channels() {
    // max(x * scale + bias, 0) of the first channels of a wider image, per channel and in place.
    for [pixels, channels, width] in [[9u32, 33, 40], [70, 64, 64], [3, 1030, 1100], [50, 5, 9]] {
        let image = (pixels * width) as usize;
        let mut inputs = noise(image + 2 * channels as usize, 3);
        inputs[1] = f32::NAN;
        let shape = [pixels, channels];
        let slice = view(0, DType::F32, &shape, &[i64::from(width), 1]);
        let channel = |n: u32| {
            let offset = image as u64 * 4 + u64::from(n * channels) * 4;
            view(offset, DType::F32, &shape, &[0, 1])
        };
        let views = [slice, channel(0), channel(1)];
        let expected: Vec<f32> = indices(&shape)
            .iter()
            .map(|i| {
                let [x, scale, bias] = [0, 1, 2].map(|v: usize| inputs[element(&views[v], i)]);
                let value = x * scale + bias;
                if value < 0.0 { 0.0 } else { value }
            })
            .collect();
        let ops = vec![
            op(42, 0, 1, 0),
            op(40, 3, 2, 0),
            op(0, 0, 0, 0),
            op(45, 4, 5, 0),
        ];
        let at = output_at(inputs.len());
        let aside = Instruction::Map(Map {
            inputs: views.to_vec(),
            output: floats(at, &shape),
            ops: ops.clone(),
        });
        let actual = run_floats(&aside, &inputs, expected.len());
        assert!(actual[1].is_nan() && expected[1].is_nan());
        close(&actual[2..], &expected[2..]);

        // The same into its own place, whence it is copied out.
        let mut model = Model::new(
            (at + 4 * expected.len() as u64).next_multiple_of(64),
            vec![floats(0, &[inputs.len() as u32])],
            vec![floats(at, &shape)],
        );
        model.push(Instruction::Map(Map {
            inputs: views.to_vec(),
            output: views[0].clone(),
            ops,
        }));
        model.push(Instruction::Copy(Copy {
            input: views[0].clone(),
            output: floats(at, &shape),
        }));
        for isa in isas() {
            for threads in [1, 2] {
                let output = model.run(&bytes(&inputs), isa, threads).expect("runs");
                close(&from_bytes(&output)[2..], &expected[2..]);
            }
        }
    }
}

#[test]
fn map_knows_every_operation() {
    let x = [0.3f32, -0.7, 2.5, -2.5, 0.0, 1e-3, 0.99, -3.5];
    let y = [1.5f32, 0.4, -2.0, 0.7, 3.0, -1.0, 2.0, 2.0];
    type Reference = fn(f32, f32) -> f32;
    let floats_of: Vec<(u32, Reference)> = vec![
        (10, |x, _| -x),
        (11, |x, _| x.abs()),
        (12, |x, _| x.exp()),
        (13, |x, _| x.ln()),
        (14, |x, _| x.sqrt()),
        (15, |x, _| 1.0 / x),
        (16, |x, _| x.floor()),
        (17, |x, _| x.ceil()),
        (18, |x, _| x.round_ties_even()),
        (19, |x, _| 1.0 / (1.0 + (-x).exp())),
        (20, |x, _| x.tanh()),
        (22, |x, _| x.sin()),
        (23, |x, _| x.cos()),
        (24, |x, _| x.tan()),
        (25, |x, _| x.asin()),
        (26, |x, _| x.acos()),
        (27, |x, _| x.atan()),
        (28, |x, _| x.sinh()),
        (29, |x, _| x.cosh()),
        (30, |x, _| x.asinh()),
        (31, |x, _| x.acosh()),
        (32, |x, _| x.atanh()),
        (33, |x, _| if x == 0.0 { 0.0 } else { x.signum() }),
        (34, |x, _| (1.0 + x.exp()).ln()),
        (40, |x, y| x + y),
        (41, |x, y| x - y),
        (42, |x, y| x * y),
        (43, |x, y| x / y),
        (44, |x, y| x.min(y)),
        (45, |x, y| x.max(y)),
        (46, |x, y| x.powf(y)),
        (47, |x, y| x % y),
        (48, |x, y| x - y * (x / y).floor()),
    ];
    let inputs: Vec<f32> = x.iter().chain(&y).copied().collect();
    for (code, reference) in floats_of {
        let second = if code < 40 { 0 } else { 1 };
        let map = Instruction::Map(Map {
            inputs: vec![floats(0, &[8]), floats(32, &[8])],
            output: floats(output_at(16), &[8]),
            ops: vec![op(code, 0, second, 0)],
        });
        let expected: Vec<f32> = x.iter().zip(&y).map(|(&x, &y)| reference(x, y)).collect();
        close(&run_floats(&map, &inputs, 8), &expected);
    }
}

#[test]
fn map_computes_integers_and_converts() {
    type Reference = fn(i64, i64) -> i64;
    let x = [5i64, -7, i64::MIN, 0, 100, -1, 3, 64];
    let y = [3i64, 2, -1, 0, -7, 65, 40, 63];
    let cases: Vec<(u32, Reference)> = vec![
        (70, |x, _| x.wrapping_neg()),
        (71, |x, _| x.wrapping_abs()),
        (72, |x, _| x.signum()),
        (73, |x, _| !x),
        (80, |x, y| x.wrapping_add(y)),
        (81, |x, y| x.wrapping_sub(y)),
        (82, |x, y| x.wrapping_mul(y)),
        (83, |x, y| if y == 0 { 0 } else { x.wrapping_div(y) }),
        (84, |x, y| x.min(y)),
        (85, |x, y| x.max(y)),
        (86, |x, y| if y == 0 { 0 } else { x.wrapping_rem(y) }),
        (87, |x, y| match y {
            0 => 0,
            -1 => 0,
            _ => x.rem_euclid(y) + if y < 0 && x.rem_euclid(y) != 0 { y } else { 0 },
        }),
        (88, |x, y| x & y),
        (89, |x, y| x | y),
        (90, |x, y| x ^ y),
        (91, |x, y| if (0..64).contains(&y) { x << y } else { 0 }),
        (92, |x, y| {
            if (0..64).contains(&y) {
                ((x as u64) >> y) as i64
            } else {
                0
            }
        }),
        (93, |x, y| (x < y).into()),
        (94, |x, y| (x <= y).into()),
        (95, |x, y| (x == y).into()),
        (96, |x, y| {
            if y < 0 {
                0
            } else {
                (0..y).fold(1i64, |p, _| p.wrapping_mul(x))
            }
        }),
    ];
    let input: Vec<u8> = x.iter().chain(&y).flat_map(|v| v.to_le_bytes()).collect();
    for (code, reference) in cases {
        for dtype in [DType::I64, DType::I32, DType::U8, DType::I8, DType::Bool] {
            let output = dense(128, dtype, &[8]);
            let mut model =
                Model::new(192, vec![dense(0, DType::I64, &[16])], vec![output.clone()]);
            model.push(Instruction::Map(Map {
                inputs: vec![dense(0, DType::I64, &[8]), dense(64, DType::I64, &[8])],
                output,
                ops: vec![op(code, 0, if code < 80 { 0 } else { 1 }, 0)],
            }));
            let expected: Vec<u8> = x
                .iter()
                .zip(&y)
                .flat_map(|(&x, &y)| {
                    let value = reference(x, y);
                    match dtype {
                        DType::I64 => value.to_le_bytes().to_vec(),
                        DType::I32 => (value as i32).to_le_bytes().to_vec(),
                        DType::Bool => vec![u8::from(value != 0)],
                        _ => vec![value as u8],
                    }
                })
                .collect();
            let actual = model.run(&input, isas()[0], 1).expect("runs");
            assert_eq!(actual, expected, "code {code} to {dtype:?}");
        }
    }
}

#[test]
fn map_mixes_classes() {
    let x = [
        1.5f32,
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        -2.0,
        1e30,
    ];
    // select(is_nan(x), -1, x) as integer and back, plus x <= 1.5
    let map = Instruction::Map(Map {
        inputs: vec![floats(0, &[6])],
        output: floats(output_at(6), &[6]),
        ops: vec![
            op(63, 0, 0, 0),
            op(0, (-1f32).to_bits().into(), 0, 0),
            op(100, 1, 2, 0),
            op(3, 3, 0, 0),
            op(2, 4, 0, 0),
            op(61, 0, 2, 0),
            op(2, 6, 0, 0),
            op(40, 5, 7, 0),
        ],
    });
    let expected = [
        1.0,
        -1.0,
        i64::MAX as f32,
        i64::MIN as f32 + 1.0,
        -1.0,
        i64::MAX as f32,
    ];
    close(&run_floats(&map, &x, 6), &expected);
}

#[test]
fn copy_transposes_slices_and_broadcasts() {
    let inputs = noise(6000, 3);
    let at = output_at(inputs.len());
    let cases: Vec<(View, View)> = vec![
        // [C, H, W] to [H, W, C]
        (
            view(0, DType::F32, &[17, 19, 3], &[19, 1, 323]),
            floats(at, &[17, 19, 3]),
        ),
        (
            view(0, DType::F32, &[40, 50], &[1, 40]),
            floats(at, &[40, 50]),
        ),
        (view(0, DType::F32, &[7, 33], &[0, 1]), floats(at, &[7, 33])),
        (view(396, DType::F32, &[100], &[-1]), floats(at, &[100])),
        // into a slice of channels
        (
            floats(0, &[5, 6, 7]),
            view(at + 8, DType::F32, &[5, 6, 7], &[60, 10, 1]),
        ),
        (
            view(0, DType::F32, &[2, 3, 4, 5], &[60, 5, 15, 1]),
            floats(at, &[2, 3, 4, 5]),
        ),
        (floats(0, &[]), floats(at, &[])),
    ];
    for (input, output) in cases {
        let mut expected = vec![0.0; 3000];
        for i in indices(&input.shape) {
            expected[element(&output, &i) - at as usize / 4] = inputs[element(&input, &i)];
        }
        let copy = Instruction::Copy(Copy { input, output });
        close(&run_floats(&copy, &inputs, 3000), &expected);
    }
}

#[test]
fn copy_moves_bytes_and_long_integers() {
    for (dtype, size) in [(DType::U8, 1u64), (DType::I64, 8)] {
        let output = dense(1024, dtype, &[10, 12]);
        let mut model = Model::new(2048, vec![dense(0, dtype, &[120])], vec![output.clone()]);
        let input = view(0, dtype, &[10, 12], &[1, 10]);
        model.push(Instruction::Copy(Copy {
            input: input.clone(),
            output,
        }));
        let data: Vec<u8> = (0..120 * size).map(|i| (i * 7 % 251) as u8).collect();
        let expected: Vec<u8> = indices(&[10, 12])
            .iter()
            .flat_map(|i| {
                let start = element(&input, i) * size as usize;
                data[start..start + size as usize].to_vec()
            })
            .collect();
        assert_eq!(model.run(&data, isas()[0], 2), Ok(expected));
    }
}

fn gather_model(axis: u32, index_values: &[i32]) -> (Model, Vec<u8>) {
    let (data, indices) = (floats(0, &[3, 4, 5]), dense(256, DType::I32, &[2, 3]));
    let mut shape = vec![3u32, 4, 5];
    shape.splice(axis as usize..=axis as usize, [2, 3]);
    let output = floats(512, &shape);
    let mut model = Model::new(
        2048,
        vec![data.clone(), indices.clone()],
        vec![output.clone()],
    );
    model.push(Instruction::Gather(Gather {
        data,
        indices,
        output,
        axis,
    }));
    let mut input = bytes(&noise(60, 5));
    input.extend(index_values.iter().flat_map(|v| v.to_le_bytes()));
    (model, input)
}

#[test]
fn gather_picks_along_each_axis() {
    let picks = [0i32, 2, -1, 1, -3, 0];
    let data = noise(60, 5);
    for axis in 0..3u32 {
        let (model, input) = gather_model(axis, &picks);
        let output = &model.program.outputs[0];
        let length = [3i64, 4, 5][axis as usize];
        let expected: Vec<f32> = indices(&output.shape)
            .iter()
            .map(|i| {
                let a = axis as usize;
                let pick = i64::from(picks[(i[a] * 3 + i[a + 1]) as usize]);
                let mut from = i.clone();
                from.splice(a..a + 2, [if pick < 0 { pick + length } else { pick }]);
                data[element(&floats(0, &[3, 4, 5]), &from)]
            })
            .collect();
        for threads in [1, 2] {
            close(
                &from_bytes(&model.run(&input, isas()[0], threads).unwrap()),
                &expected,
            );
        }
    }
}

/// It marks its slot, and its slot alone; the others' results are as ever.
#[test]
fn gather_marks_the_slot_of_an_index_out_of_range() {
    for bad in [3, -4, i32::MAX, i32::MIN] {
        let (model, wrong) = gather_model(0, &[0, 1, 2, bad, 0, 0]);
        let (_, right) = gather_model(0, &[0, 1, 2, -1, 0, 0]);
        let expected = model.run(&right, isas()[0], 2).expect("runs");
        let mut machine = model.load_slots(isas()[0], 2, 3).expect("loads").machine;
        let batch = [(0, &right[..]), (1, &wrong[..]), (2, &right[..])];
        let outputs = run_batch(&mut machine, &model.program, &batch).expect("runs");
        let marks = [0, 1, 2].map(|slot| machine.wrong_index(slot));
        assert_eq!(marks, [None, Some(3), None]);
        assert!(outputs[0] == expected && outputs[2] == expected);
        run_batch(&mut machine, &model.program, &[(1, &right)]).expect("runs");
        assert_eq!(machine.wrong_index(1), None);
    }
}

#[test]
fn reduce_floats() {
    let inputs = noise(20_000, 6);
    let cases = [
        // contiguous; side by side; strided both; nothing reduced; everything reduced
        (floats(0, &[5, 7, 33]), 1),
        (view(0, DType::F32, &[2, 70, 49], &[3430, 1, 70]), 2),
        (view(0, DType::F32, &[4, 6, 5, 3], &[1, 4, 72, 24]), 2),
        (floats(0, &[6, 5]), 2),
        (floats(0, &[20_000]), 0),
        (view(400, DType::F32, &[3, 20], &[0, -5]), 1),
    ];
    for (input, rank) in cases {
        let shape = &input.shape[..rank];
        let count = shape.iter().product::<u32>() as usize;
        for (kind, scale) in [
            (ReduceKind::Sum, 0.25f32),
            (ReduceKind::Prod, 1.0),
            (ReduceKind::Max, 1.0),
            (ReduceKind::Min, -2.0),
            (ReduceKind::SumSquare, 1.0),
            (ReduceKind::SumAbs, 1.0),
        ] {
            let reduce = Instruction::Reduce(Reduce {
                input: input.clone(),
                output: floats(output_at(inputs.len()), shape),
                reduction: kind,
                scale: scale.to_bits(),
            });
            let expected: Vec<f32> = indices(shape)
                .iter()
                .map(|i| {
                    let values = indices(&input.shape[rank..]);
                    let values = values.iter().map(|j| {
                        f64::from(inputs[element(&input, &[i.clone(), j.clone()].concat())])
                    });
                    let result = match kind {
                        ReduceKind::Sum => values.sum::<f64>(),
                        ReduceKind::Prod => values.product(),
                        ReduceKind::Max => values.fold(f64::NEG_INFINITY, f64::max),
                        ReduceKind::Min => values.fold(f64::INFINITY, f64::min),
                        ReduceKind::SumSquare => values.map(|v| v * v).sum(),
                        _ => values.map(f64::abs).sum(),
                    };
                    result as f32 * scale
                })
                .collect();
            close(&run_floats(&reduce, &inputs, count), &expected);
        }
    }
}

#[test]
fn reduce_finds_positions_and_integers() {
    let values = [3i32, 9, 9, -4, 9, -4, 0, 1, 5, 5, 5, 5];
    let input: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let run = |kind, dtype, size: usize| {
        let output = dense(64, dtype, &[2]);
        let view = dense(0, DType::I32, &[2, 2, 3]);
        let mut model = Model::new(128, vec![view.clone()], vec![output.clone()]);
        model.push(Instruction::Reduce(Reduce {
            input: view,
            output,
            reduction: kind,
            scale: 1f32.to_bits(),
        }));
        let bytes = model.run(&input, isas()[0], 2).expect("runs");
        let first = bytes[..size]
            .iter()
            .rev()
            .fold(0i64, |n, &b| (n << 8) | i64::from(b));
        let last = bytes[size..]
            .iter()
            .rev()
            .fold(0i64, |n, &b| (n << 8) | i64::from(b));
        (first, last)
    };
    assert_eq!(run(ReduceKind::ArgMaxFirst, DType::I64, 8), (1, 2));
    assert_eq!(run(ReduceKind::ArgMaxLast, DType::I64, 8), (4, 5));
    assert_eq!(run(ReduceKind::ArgMinFirst, DType::I64, 8), (3, 0));
    assert_eq!(run(ReduceKind::ArgMinLast, DType::I64, 8), (5, 0));
    assert_eq!(run(ReduceKind::Sum, DType::I32, 4), (22, 21));
    assert_eq!(run(ReduceKind::Max, DType::I32, 4), (9, 5));
    assert_eq!(run(ReduceKind::SumAbs, DType::I32, 4), (38, 21));
}

#[test]
fn matmul_of_all_layouts() {
    let inputs = noise(60_000, 8);
    let at = output_at(inputs.len());
    for (batch, m, k, n) in [
        (1u32, 1u32, 5u32, 1u32),
        (2, 7, 33, 70),
        (3, 5, 1, 64),
        (1, 9, 20, 130),
        (1, 37, 200, 66),
    ] {
        for transposed in [false, true] {
            let [mi, ki, ni] = [m, k, n].map(i64::from);
            let a = floats(0, &[batch, m, k]);
            let b_strides = if transposed {
                [0, 1, ki]
            } else {
                [ki * ni, ni, 1]
            };
            let b = view(20_000, DType::F32, &[batch, k, n], &b_strides);
            let output = view(at, DType::F32, &[batch, m, n], &[mi * ni, ni, 1]);
            let expected: Vec<f32> = indices(&[batch, m, n])
                .iter()
                .map(|i| {
                    let products = (0..ki).map(|k| {
                        let x = inputs[element(&a, &[i[0], i[1], k])];
                        x * inputs[element(&b, &[i[0], k, i[2]])]
                    });
                    products.sum()
                })
                .collect();
            let matmul = Instruction::MatMul(MatMul { a, b, output });
            close(&run_floats(&matmul, &inputs, expected.len()), &expected);
        }
    }
}

#[test]
fn pool_of_odd_windows() {
    let inputs = noise(30_000, 9);
    let at = output_at(inputs.len());
    // kernel, stride, dilation, padding, output height and width, channels
    let cases = [
        ([3, 3], [2, 2], [1, 1], [1, 1, 1, 1], [5, 6], 67),
        ([2, 2], [2, 2], [1, 1], [0, 0, 0, 0], [4, 5], 3),
        ([3, 2], [1, 3], [2, 1], [2, 0, 1, 1], [9, 4], 16),
        ([9, 11], [1, 1], [1, 1], [0, 0, 0, 0], [1, 1], 130),
        ([3, 3], [3, 3], [1, 1], [1, 1, 0, 0], [4, 4], 1),
    ];
    for (kernel, stride, dilation, padding, [oh, ow], c) in cases {
        for (reduction, count_padding) in [
            (PoolKind::Max, false),
            (PoolKind::Average, false),
            (PoolKind::Average, true),
        ] {
            let input = floats(0, &[2, 9, 11, c]);
            let output = floats(at, &[2, oh, ow, c]);
            let expected: Vec<f32> = indices(&output.shape)
                .iter()
                .map(|i| {
                    let (mut held, mut cells) = (vec![], 0);
                    for ky in 0..i64::from(kernel[0]) {
                        for kx in 0..i64::from(kernel[1]) {
                            let [top, left, bottom, right] = padding.map(i64::from);
                            let y = i[1] * i64::from(stride[0]) - top + ky * i64::from(dilation[0]);
                            let x =
                                i[2] * i64::from(stride[1]) - left + kx * i64::from(dilation[1]);
                            if (0..9).contains(&y) && (0..11).contains(&x) {
                                held.push(inputs[element(&input, &[i[0], y, x, i[3]])]);
                            }
                            if y < 9 + bottom && x < 11 + right {
                                cells += 1;
                            }
                        }
                    }
                    if reduction == PoolKind::Max {
                        held.iter().copied().fold(f32::NEG_INFINITY, f32::max)
                    } else {
                        let divisor = if count_padding { cells } else { held.len() };
                        held.iter().sum::<f32>() / divisor as f32
                    }
                })
                .collect();
            let pool = Instruction::Pool(Pool {
                input,
                output,
                reduction,
                kernel,
                stride,
                dilation,
                padding,
                count_padding,
            });
            close(&run_floats(&pool, &inputs, expected.len()), &expected);
        }
    }
}

#[test]
fn load_from_streamed_and_resident_chunks() {
    let data: Vec<u8> = (0..300u32).map(|i| (i * 3 % 256) as u8).collect();
    for resident in [false, true] {
        let output = dense(0, DType::U8, &[300]);
        let mut model = Model::new(320, vec![], vec![output.clone()]);
        if resident {
            model.program.regions.fixed_size = 320;
        }
        for (i, part) in data.chunks(128).enumerate() {
            model.chunk(part.to_vec(), resident.then_some(640 + 128 * i as u64));
        }
        model.push(Instruction::Load(Load {
            output,
            first_chunk: 0,
            chunk_count: 3,
        }));
        for threads in [1, 2] {
            assert_eq!(model.run(&[], isas()[0], threads), Ok(data.clone()));
        }
    }
}
