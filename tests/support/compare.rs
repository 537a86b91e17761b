//! Values beside expected values, within a tolerance.

use graphtool::tensor::{Complex64, DType, Tensor, Value, cast};

/// How far an element may be from the expected one: `atol + rtol * |expected|`.
#[derive(Clone, Copy)]
pub struct Tolerance {
    pub rtol: f64,
    pub atol: f64,
}

#[allow(dead_code)]
impl Tolerance {
    /// Of the standard's own test suite.
    pub const SUITE: Tolerance = Tolerance { rtol: 1e-3, atol: 1e-7 };
    /// Of whole models against the framework that exported them.
    pub const MODEL: Tolerance = Tolerance { rtol: 1e-3, atol: 1e-5 };
}

/// Equal kind, dtype and dims, and elements within the tolerance.
pub fn compare(found: &Value, expected: &Value, tolerance: Tolerance) -> Result<(), String> {
    let each = |(a, b)| compare(a, b, tolerance);
    match (found, expected) {
        (Value::Tensor(a), Value::Tensor(b)) => compare_tensors(a, b, tolerance),
        (Value::Sequence(a), Value::Sequence(b)) if a.len() == b.len() => a.iter().zip(b.iter()).try_for_each(each),
        (Value::Optional(None), Value::Optional(None)) => Ok(()),
        (Value::Optional(Some(a)), Value::Optional(Some(b))) => each((a, b)),
        (Value::Optional(Some(a)), b) | (b, Value::Optional(Some(a))) => each((a, b)),
        (Value::Map(a), Value::Map(b)) if a.keys == b.keys => a.values.iter().zip(&b.values).try_for_each(each),
        (a, b) => Err(format!("expected {}, found {}", b.describe(), a.describe())),
    }
}

fn compare_tensors(a: &Tensor, b: &Tensor, t: Tolerance) -> Result<(), String> {
    if a.dtype() != b.dtype() || a.shape() != b.shape() {
        return Err(format!("expected {}{}, found {}{}", b.dtype(), b.shape(), a.dtype(), a.shape()));
    }
    let parts = |t: &Tensor| -> Result<Vec<f64>, String> {
        match t.dtype() {
            DType::C64 | DType::C128 => {
                let wide = cast(t, DType::C128).map_err(|e| e.to_string())?;
                Ok(wide.to_slice::<Complex64>().map_err(|e| e.to_string())?.iter().flat_map(|c| [c.re, c.im]).collect())
            }
            _ => cast(t, DType::F64).and_then(Tensor::into_vec).map_err(|e| e.to_string()),
        }
    };
    match a.dtype() {
        DType::BF16 => close(&parts(a)?, &parts(b)?, Tolerance { rtol: 1.0 / 64.0, ..t }),
        d if d.is_float() || d == DType::C64 || d == DType::C128 => close(&parts(a)?, &parts(b)?, t),
        _ if a == b => Ok(()),
        _ => Err(format!("expected {b:?}, found {a:?}")),
    }
}

fn close(a: &[f64], b: &[f64], t: Tolerance) -> Result<(), String> {
    for (i, (&x, &y)) in a.iter().zip(b).enumerate() {
        let equal = x == y || (x.is_nan() && y.is_nan()) || (x - y).abs() <= t.atol + t.rtol * y.abs();
        if !equal {
            return Err(format!("element {i}: expected {y}, found {x}"));
        }
    }
    Ok(())
}
