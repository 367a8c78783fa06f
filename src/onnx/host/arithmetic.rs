//! Arithmetic, comparisons, logic and functions of single elements.

use super::strides::zip;
use super::{Array, Call, Outputs, one};
use crate::error::{Result, bail};
use crate::onnx::element::{Element, for_any, for_numbers};
use crate::onnx::tensor::TensorData;

/// Numbers as operators compute with them: integers wrap.
pub(super) trait Number: Copy + PartialOrd {
    const ZERO: Self;
    const ONE: Self;
    /// No element is smaller.
    const LOWEST: Self;
    /// No element is larger.
    const HIGHEST: Self;
    const IS_FLOAT: bool;
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    /// Towards zero; the divisor of an integer is not 0.
    fn div(self, other: Self) -> Self;
    /// With the sign of the dividend.
    fn rem(self, other: Self) -> Self;
    fn neg(self) -> Self;
    fn abs(self) -> Self;
    fn to_f64(self) -> f64;
    fn from_f64(value: f64) -> Self;
    /// By squaring, for a whole exponent that is not negative.
    fn whole_power(self, exponent: u64) -> Self {
        let (mut result, mut base, mut left) = (Self::ONE, self, exponent);
        while left > 0 {
            if left & 1 == 1 {
                result = result.mul(base);
            }
            base = base.mul(base);
            left >>= 1;
        }
        result
    }
    fn is_nan(self) -> bool {
        self.to_f64().is_nan()
    }
    /// The larger one; NaN if either is.
    fn larger(self, other: Self) -> Self {
        if self.is_nan() || self > other { self } else { other }
    }
    fn smaller(self, other: Self) -> Self {
        if self.is_nan() || self < other { self } else { other }
    }
}

macro_rules! integers {
    ($($type:ty: $neg:expr, $abs:expr);* $(;)?) => {
        $(impl Number for $type {
            const ZERO: Self = 0;
            const ONE: Self = 1;
            const LOWEST: Self = <$type>::MIN;
            const HIGHEST: Self = <$type>::MAX;
            const IS_FLOAT: bool = false;
            fn add(self, other: Self) -> Self { self.wrapping_add(other) }
            fn sub(self, other: Self) -> Self { self.wrapping_sub(other) }
            fn mul(self, other: Self) -> Self { self.wrapping_mul(other) }
            fn div(self, other: Self) -> Self { self.wrapping_div(other) }
            fn rem(self, other: Self) -> Self { self.wrapping_rem(other) }
            fn neg(self) -> Self { self.wrapping_neg() }
            fn abs(self) -> Self { ($abs)(self) }
            fn to_f64(self) -> f64 { self as f64 }
            fn from_f64(value: f64) -> Self { value as $type }
            fn is_nan(self) -> bool { false }
        })*
    };
}

integers!(
    i8: i8::wrapping_neg, i8::wrapping_abs; i16: i16::wrapping_neg, i16::wrapping_abs;
    i32: i32::wrapping_neg, i32::wrapping_abs; i64: i64::wrapping_neg, i64::wrapping_abs;
    u8: u8::wrapping_neg, std::convert::identity; u16: u16::wrapping_neg, std::convert::identity;
    u32: u32::wrapping_neg, std::convert::identity; u64: u64::wrapping_neg, std::convert::identity;
);

macro_rules! floats {
    ($($type:ty),*) => {
        $(impl Number for $type {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const LOWEST: Self = <$type>::NEG_INFINITY;
            const HIGHEST: Self = <$type>::INFINITY;
            const IS_FLOAT: bool = true;
            fn add(self, other: Self) -> Self { self + other }
            fn sub(self, other: Self) -> Self { self - other }
            fn mul(self, other: Self) -> Self { self * other }
            fn div(self, other: Self) -> Self { self / other }
            fn rem(self, other: Self) -> Self { self % other }
            fn neg(self) -> Self { -self }
            fn abs(self) -> Self { self.abs() }
            fn to_f64(self) -> f64 { self.into() }
            fn from_f64(value: f64) -> Self { value as $type }
            fn is_nan(self) -> bool { self.is_nan() }
        })*
    };
}

floats!(f32, f64);

fn not_numbers<T>(data: &TensorData) -> Result<T> {
    bail!(InvalidInput, "expected numbers, found {}", data.type_name())
}

/// Both inputs of an operator; the second one as the versions before 7 broadcast it.
fn pair<'a>(call: &Call<'a>) -> Result<(&'a Array, Array)> {
    let (a, b) = (call.array(0)?, call.array(1)?);
    if a.element_type() != b.element_type() && !call.node.is("Pow") {
        bail!(
            InvalidInput,
            "expected inputs of one type, found {} and {}",
            a.element_type().name(),
            b.element_type().name()
        );
    }
    let mut b = b.clone();
    if call.node.version < 7 {
        match (call.node.flag("broadcast", false)?, call.node.int("axis")?) {
            (false, _) if a.shape == b.shape => {}
            (false, _) => bail!(InvalidInput, "expected inputs of one shape, found {:?} and {:?}", a.shape, b.shape),
            (true, Some(axis)) => {
                let axis = super::axis_of(axis, a.rank())?;
                let Some(after) = a.rank().checked_sub(axis + b.rank()) else {
                    bail!(InvalidInput, "axis: expected room for {:?} in {:?} from {axis} on", b.shape, a.shape);
                };
                let shape = b.shape.iter().copied().chain(std::iter::repeat_n(1, after)).collect();
                b = b.reshaped(shape);
            }
            (true, None) => {}
        }
    }
    Ok((a, b))
}

/// f of both inputs, broadcast.
fn both<T: Element, V: Element>(a: &Array, b: &Array, call: &Call<'_>, f: impl Fn(T, T) -> V) -> Result<Array> {
    let (Some(x), Some(y)) = (a.of::<T>(), b.of::<T>()) else { return not_numbers(&b.data) };
    let (shape, values) = zip((x, &a.shape), (y, &b.shape), call.limits, f)?;
    Ok(Array::new(shape, values))
}

fn no_zeros<T: Number>(divisors: &[T]) -> Result<()> {
    if !T::IS_FLOAT && divisors.contains(&T::ZERO) {
        bail!(InvalidInput, "expected divisors other than 0, found 0");
    }
    Ok(())
}

fn binary_of<T: Element + Number>(_: &[T], a: &Array, b: &Array, call: &Call<'_>) -> Result<Array> {
    match call.node.op_type.as_str() {
        "Add" => both(a, b, call, T::add),
        "Sub" => both(a, b, call, T::sub),
        "Mul" => both(a, b, call, T::mul),
        _ => {
            no_zeros(b.of::<T>().unwrap_or_default())?;
            both(a, b, call, T::div)
        }
    }
}

pub(super) fn binary(call: &Call<'_>) -> Outputs {
    let (a, b) = pair(call)?;
    one(for_numbers!(&*a.data, v => binary_of(v, a, &b, call), other => not_numbers(other))?)
}

fn modulo_of<T: Element + Number>(_: &[T], a: &Array, b: &Array, call: &Call<'_>) -> Result<Array> {
    no_zeros(b.of::<T>().unwrap_or_default())?;
    if call.node.flag("fmod", false)? {
        return both(a, b, call, T::rem);
    }
    // With the sign of the divisor.
    both(a, b, call, |x: T, y: T| {
        let rest = x.rem(y);
        let differs = (rest < T::ZERO && y > T::ZERO) || (rest > T::ZERO && y < T::ZERO);
        if differs { rest.add(y) } else { rest }
    })
}

pub(super) fn modulo(call: &Call<'_>) -> Outputs {
    let (a, b) = pair(call)?;
    one(for_numbers!(&*a.data, v => modulo_of(v, a, &b, call), other => not_numbers(other))?)
}

fn power_of<T: Element + Number, U: Element + Number>(
    bases: &[T],
    exponents: &[U],
    [a, b]: [&Array; 2],
    call: &Call<'_>,
) -> Result<Array> {
    // A square is no function of a general exponent.
    if let [exponent] = exponents
        && T::IS_FLOAT
        && exponent.to_f64() == 2.0
        && b.rank() <= a.rank()
    {
        return Ok(Array::new(a.shape.clone(), bases.iter().map(|&x| x.mul(x)).collect()));
    }
    let (shape, values) = zip((bases, &a.shape), (exponents, &b.shape), call.limits, |x: T, y: U| {
        let exponent = y.to_f64();
        if !T::IS_FLOAT && !U::IS_FLOAT && exponent >= 0.0 {
            x.whole_power(exponent as u64)
        } else {
            T::from_f64(x.to_f64().powf(exponent))
        }
    })?;
    Ok(Array::new(shape, values))
}

pub(super) fn power(call: &Call<'_>) -> Outputs {
    let (a, b) = pair(call)?;
    let of = [a, &b];
    one(for_numbers!(
        &*a.data,
        x => for_numbers!(&*b.data, y => power_of(x, y, of, call), other => not_numbers(other)),
        other => not_numbers(other)
    )?)
}

fn prelu_of<T: Element + Number>(_: &[T], a: &Array, b: &Array, call: &Call<'_>) -> Result<Array> {
    both(a, b, call, |x: T, slope: T| if x < T::ZERO { x.mul(slope) } else { x })
}

pub(super) fn prelu(call: &Call<'_>) -> Outputs {
    let (a, b) = (call.array(0)?, call.array(1)?);
    // Before version 7 the slope had one element for each channel.
    let b = match (call.node.version, b.rank(), a.rank()) {
        (..7, 1, 2..) if b.len() > 1 => {
            b.reshaped(std::iter::once(b.len()).chain(std::iter::repeat_n(1, a.rank() - 2)).collect())
        }
        _ => b.clone(),
    };
    let result = for_numbers!(&*a.data, v => prelu_of(v, a, &b, call), other => not_numbers(other))?;
    if result.shape != a.shape {
        bail!(InvalidInput, "slope: expected a shape that broadcasts to {:?}, found {:?}", a.shape, b.shape);
    }
    one(result)
}

macro_rules! for_integers {
    ($data:expr, $values:ident => $body:expr) => {
        match $data {
            TensorData::I8($values) => $body,
            TensorData::I16($values) => $body,
            TensorData::I32($values) => $body,
            TensorData::I64($values) => $body,
            TensorData::U8($values) => $body,
            TensorData::U16($values) => $body,
            TensorData::U32($values) => $body,
            TensorData::U64($values) => $body,
            other => bail!(InvalidInput, "expected integers, found {}", other.type_name()),
        }
    };
}

pub(super) fn bit_shift(call: &Call<'_>) -> Outputs {
    let (a, b) = pair(call)?;
    let left = match call.node.text("direction")? {
        Some("LEFT") => true,
        Some("RIGHT") => false,
        other => bail!(InvalidFile, "direction: expected LEFT or RIGHT, found {other:?}"),
    };
    fn shifted<T: Element + Shift>(_: &[T], a: &Array, b: &Array, call: &Call<'_>, left: bool) -> Result<Array> {
        both(a, b, call, |x: T, y: T| if left { x.left(y) } else { x.right(y) })
    }
    one(for_integers!(&*a.data, v => shifted(v, a, &b, call, left))?)
}

/// Shifts by the width and more, which a negative number asks for too, leave no bit but that of the sign.
trait Shift: Copy {
    fn left(self, by: Self) -> Self;
    fn right(self, by: Self) -> Self;
}

macro_rules! shifts {
    ($($type:ty),*) => {
        $(impl Shift for $type {
            fn left(self, by: Self) -> Self { u32::try_from(by).ok().and_then(|n| self.checked_shl(n)).unwrap_or(0) }
            fn right(self, by: Self) -> Self {
                u32::try_from(by).ok().and_then(|n| self.checked_shr(n)).unwrap_or(self >> (<$type>::BITS - 1) >> 1)
            }
        })*
    };
}

shifts!(i8, i16, i32, i64, u8, u16, u32, u64);

pub(super) fn bitwise(call: &Call<'_>) -> Outputs {
    fn of<T: Element + std::ops::BitAnd<Output = T> + std::ops::BitOr<Output = T> + std::ops::BitXor<Output = T>>(
        _: &[T],
        a: &Array,
        b: &Array,
        call: &Call<'_>,
    ) -> Result<Array> {
        match call.node.op_type.as_str() {
            "BitwiseAnd" => both(a, b, call, |x: T, y: T| x & y),
            "BitwiseOr" => both(a, b, call, |x: T, y: T| x | y),
            _ => both(a, b, call, |x: T, y: T| x ^ y),
        }
    }
    let (a, b) = pair(call)?;
    one(for_integers!(&*a.data, v => of(v, a, &b, call))?)
}

pub(super) fn bitwise_not(call: &Call<'_>) -> Outputs {
    let a = call.array(0)?;
    one(for_integers!(&*a.data, v => Array::new(a.shape.clone(), v.iter().map(|x| !x).collect())))
}

pub(super) fn logical(call: &Call<'_>) -> Outputs {
    let (a, b) = pair(call)?;
    one(match call.node.op_type.as_str() {
        "And" => both(a, &b, call, |x: bool, y: bool| x && y),
        "Or" => both(a, &b, call, |x: bool, y: bool| x || y),
        _ => both(a, &b, call, |x: bool, y: bool| x != y),
    }?)
}

pub(super) fn not(call: &Call<'_>) -> Outputs {
    let a = call.array(0)?;
    match a.of::<bool>() {
        Some(v) => one(Array::new(a.shape.clone(), v.iter().map(|x| !x).collect())),
        None => bail!(InvalidInput, "expected bool, found {}", a.element_type().name()),
    }
}

fn compare_of<T: Element>(_: &[T], a: &Array, b: &Array, call: &Call<'_>) -> Result<Array> {
    match call.node.op_type.as_str() {
        "Equal" => both(a, b, call, |x: T, y: T| x == y),
        "Greater" => both(a, b, call, |x: T, y: T| x > y),
        "Less" => both(a, b, call, |x: T, y: T| x < y),
        "GreaterOrEqual" => both(a, b, call, |x: T, y: T| x >= y),
        _ => both(a, b, call, |x: T, y: T| x <= y),
    }
}

pub(super) fn compare(call: &Call<'_>) -> Outputs {
    let (a, b) = pair(call)?;
    one(for_any!(&*a.data, v => compare_of(v, a, &b, call))?)
}

fn variadic_of<T: Element + Number>(_: &[T], arrays: &[&Array], call: &Call<'_>) -> Result<Array> {
    let f = match call.node.op_type.as_str() {
        "Max" => T::larger,
        "Min" => T::smaller,
        _ => T::add,
    };
    let mut result = arrays[0].clone();
    for array in &arrays[1..] {
        result = both(&result, array, call, f)?;
    }
    if call.node.is("Mean") {
        let count = arrays.len() as f64;
        let values = result.of::<T>().unwrap_or_default();
        result = Array::new(result.shape.clone(), values.iter().map(|v| T::from_f64(v.to_f64() / count)).collect());
    }
    Ok(result)
}

pub(super) fn variadic(call: &Call<'_>) -> Outputs {
    let arrays = call.arrays()?;
    let Some(first) = arrays.first() else { bail!(InvalidFile, "expected an input, found none") };
    if let Some(other) = arrays.iter().find(|a| a.element_type() != first.element_type()) {
        bail!(
            InvalidInput,
            "expected inputs of one type, found {} and {}",
            first.element_type().name(),
            other.element_type().name()
        );
    }
    one(for_numbers!(&*first.data, v => variadic_of(v, &arrays, call), other => not_numbers(other))?)
}

fn unary_of<T: Element + Number>(values: &[T], op_type: &str) -> Vec<T> {
    let f: fn(T) -> T = match op_type {
        "Abs" => T::abs,
        "Neg" => T::neg,
        "Relu" => |x| if x < T::ZERO { T::ZERO } else { x },
        // Sign; NaN stays.
        _ => |x| match () {
            () if x > T::ZERO => T::ONE,
            () if x < T::ZERO => T::ONE.neg(),
            () if x.is_nan() => x,
            () => T::ZERO,
        },
    };
    values.iter().map(|&v| f(v)).collect()
}

pub(super) fn unary_number(call: &Call<'_>) -> Outputs {
    let a = call.array(0)?;
    one(for_numbers!(
        &*a.data,
        v => Array::new(a.shape.clone(), unary_of(v, &call.node.op_type)),
        other => return not_numbers(other)
    ))
}

fn clip_of<T: Element + Number>(values: &[T], a: &Array, call: &Call<'_>) -> Result<Array> {
    let bound = |index: usize, name: &str, default: T| -> Result<T> {
        match call.optional(index)? {
            Some(array) => match array.of::<T>() {
                Some(&[value]) => Ok(value),
                _ => bail!(InvalidInput, "{name}: expected one element of the input's type, found another"),
            },
            None => Ok(call.node.float(name)?.map_or(default, |v| T::from_f64(v.into()))),
        }
    };
    let (low, high) = (bound(1, "min", T::LOWEST)?, bound(2, "max", T::HIGHEST)?);
    // Where the bounds cross, the upper one holds.
    let clipped = |x: T| {
        let x = if x < low { low } else { x };
        if x > high { high } else { x }
    };
    Ok(Array::new(a.shape.clone(), values.iter().map(|&v| clipped(v)).collect()))
}

pub(super) fn clip(call: &Call<'_>) -> Outputs {
    let a = call.array(0)?;
    one(for_numbers!(&*a.data, v => clip_of(v, a, call), other => not_numbers(other))?)
}

/// The elements as f64, of floats only.
pub(super) fn doubles(array: &Array) -> Result<Vec<f64>> {
    match &*array.data {
        TensorData::F32(v) => Ok(v.iter().map(|&x| x.into()).collect()),
        TensorData::F64(v) => Ok(v.clone()),
        other => bail!(InvalidInput, "expected floats, found {}", other.type_name()),
    }
}

/// Values computed as f64 in the type of another array.
pub(super) fn like(array: &Array, shape: Vec<usize>, values: Vec<f64>) -> Array {
    match &*array.data {
        TensorData::F64(_) => Array::new(shape, values),
        _ => Array::new(shape, values.into_iter().map(|v| v as f32).collect()),
    }
}

pub(super) fn is_nan(call: &Call<'_>) -> Outputs {
    let a = call.array(0)?;
    one(Array::new(a.shape.clone(), doubles(a)?.iter().map(|v| v.is_nan()).collect()))
}

pub(super) fn is_inf(call: &Call<'_>) -> Outputs {
    let a = call.array(0)?;
    let (negative, positive) = (call.node.flag("detect_negative", true)?, call.node.flag("detect_positive", true)?);
    let found = |v: &f64| v.is_infinite() && if *v > 0.0 { positive } else { negative };
    one(Array::new(a.shape.clone(), doubles(a)?.iter().map(found).collect()))
}

/// Attributes of the operators that are a function of each float.
pub(super) fn function_attributes(op_type: &str) -> Option<&'static [&'static str]> {
    Some(match op_type {
        "Acos" | "Acosh" | "Asin" | "Asinh" | "Atan" | "Atanh" | "Cos" | "Cosh" | "Sin" | "Sinh" | "Tan" | "Round"
        | "Erf" | "Softplus" | "Softsign" | "HardSwish" | "Mish" => &[],
        "Ceil" | "Floor" | "Exp" | "Log" | "Sqrt" | "Reciprocal" | "Sigmoid" | "Tanh" => &["consumed_inputs"],
        "Elu" | "LeakyRelu" | "ThresholdedRelu" => &["alpha", "consumed_inputs"],
        "Celu" | "Swish" => &["alpha"],
        "HardSigmoid" => &["alpha", "beta", "consumed_inputs"],
        "Selu" => &["alpha", "gamma", "consumed_inputs"],
        "Shrink" => &["bias", "lambd"],
        "Gelu" => &["approximate"],
        _ => return None,
    })
}

/// A function of each float, computed as f64.
pub(super) fn function(call: &Call<'_>) -> Outputs {
    let a = call.array(0)?;
    let node = call.node;
    let parameter = |name: &str, default: f64| -> Result<f64> { Ok(node.float(name)?.map_or(default, f64::from)) };
    let sigmoid = |x: f64| if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) };
    let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
    let f: Box<dyn Fn(f64) -> f64> = match node.op_type.as_str() {
        "Acos" => Box::new(f64::acos),
        "Acosh" => Box::new(f64::acosh),
        "Asin" => Box::new(f64::asin),
        "Asinh" => Box::new(f64::asinh),
        "Atan" => Box::new(f64::atan),
        "Atanh" => Box::new(f64::atanh),
        "Cos" => Box::new(f64::cos),
        "Cosh" => Box::new(f64::cosh),
        "Sin" => Box::new(f64::sin),
        "Sinh" => Box::new(f64::sinh),
        "Tan" => Box::new(f64::tan),
        "Tanh" => Box::new(f64::tanh),
        "Ceil" => Box::new(f64::ceil),
        "Floor" => Box::new(f64::floor),
        "Round" => Box::new(f64::round_ties_even),
        "Exp" => Box::new(f64::exp),
        "Log" => Box::new(f64::ln),
        "Sqrt" => Box::new(f64::sqrt),
        "Reciprocal" => Box::new(|x| 1.0 / x),
        "Erf" => Box::new(erf),
        "Sigmoid" => Box::new(sigmoid),
        "Softplus" => Box::new(softplus),
        "Softsign" => Box::new(|x| x / (1.0 + x.abs())),
        "HardSwish" => Box::new(|x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0)),
        "Mish" => Box::new(move |x| x * softplus(x).tanh()),
        "Elu" => {
            let alpha = parameter("alpha", 1.0)?;
            Box::new(move |x| if x < 0.0 { alpha * x.exp_m1() } else { x })
        }
        "LeakyRelu" => {
            let alpha = parameter("alpha", f64::from(0.01f32))?;
            Box::new(move |x| if x < 0.0 { alpha * x } else { x })
        }
        "ThresholdedRelu" => {
            let alpha = parameter("alpha", 1.0)?;
            Box::new(move |x| if x > alpha || x.is_nan() { x } else { 0.0 })
        }
        "Celu" => {
            let alpha = parameter("alpha", 1.0)?;
            Box::new(move |x| if x < 0.0 { alpha * (x / alpha).exp_m1() } else { x })
        }
        "Swish" => {
            let alpha = parameter("alpha", 1.0)?;
            Box::new(move |x| x * sigmoid(alpha * x))
        }
        "HardSigmoid" => {
            let (alpha, beta) = (parameter("alpha", f64::from(0.2f32))?, parameter("beta", 0.5)?);
            Box::new(move |x| (alpha * x + beta).clamp(0.0, 1.0))
        }
        "Selu" => {
            let alpha = parameter("alpha", f64::from(1.673_263_2_f32))?;
            let gamma = parameter("gamma", f64::from(1.050_701_f32))?;
            Box::new(move |x| if x > 0.0 { gamma * x } else { gamma * alpha * x.exp_m1() })
        }
        "Shrink" => {
            let (bias, lambda) = (parameter("bias", 0.0)?, parameter("lambd", 0.5)?);
            Box::new(move |x| match () {
                () if x < -lambda => x + bias,
                () if x > lambda => x - bias,
                () => 0.0,
            })
        }
        _ => match node.text("approximate")?.unwrap_or("none") {
            "none" => Box::new(|x| 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))),
            "tanh" => {
                let scale = (2.0 / std::f64::consts::PI).sqrt();
                Box::new(move |x| 0.5 * x * (1.0 + (scale * (x + 0.044715 * x * x * x)).tanh()))
            }
            other => bail!(Unsupported, "approximate: expected none or tanh, found {other:?}"),
        },
    };
    // Shrink is defined for integers too.
    if node.is("Shrink") && !a.element_type().is_float() {
        let values = for_numbers!(
            &*a.data,
            v => Array::new(a.shape.clone(), shrunk(v, &f)),
            other => return not_numbers(other)
        );
        return one(values);
    }
    // These are rounded rightly in f32 too, and often stand between convolutions.
    let single: Option<fn(f32) -> f32> = match node.op_type.as_str() {
        "Sqrt" => Some(f32::sqrt),
        "Floor" => Some(f32::floor),
        "Ceil" => Some(f32::ceil),
        "Reciprocal" => Some(|x| 1.0 / x),
        _ => None,
    };
    if let (Some(single), Some(values)) = (single, a.of::<f32>()) {
        return one(Array::new(a.shape.clone(), values.iter().map(|&v| single(v)).collect()));
    }
    let values = doubles(a)?.into_iter().map(f).collect();
    one(like(a, a.shape.clone(), values))
}

fn shrunk<T: Number>(values: &[T], f: impl Fn(f64) -> f64) -> Vec<T> {
    values.iter().map(|v| T::from_f64(f(v.to_f64()))).collect()
}

/// The error function, to some 1e-15: its series near zero, the continued fraction of its complement beyond.
/// Source: [DLMF 7.6.2 and 7.9.1](https://dlmf.nist.gov/7).
pub(super) fn erf(x: f64) -> f64 {
    let size = x.abs();
    if x.is_nan() {
        return x;
    }
    if size > 6.0 {
        return 1.0f64.copysign(x);
    }
    if size < 2.5 {
        // 2/√π · e^(−x²) · Σ 2ⁿ x^(2n+1) / (1·3·…·(2n+1))
        let (mut term, mut sum, mut n) = (x, x, 1.0);
        while term.abs() > sum.abs() * 1e-17 {
            term *= 2.0 * x * x / (2.0 * n + 1.0);
            sum += term;
            n += 1.0;
        }
        return std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum;
    }
    // erfc(x) = e^(−x²)/√π · 1/(x + (1/2)/(x + (2/2)/(x + (3/2)/(x + …))))
    let mut fraction = size;
    for n in (1..=60).rev() {
        fraction = size + f64::from(n) / 2.0 / fraction;
    }
    let complement = (-size * size).exp() * std::f64::consts::FRAC_2_SQRT_PI / 2.0 / fraction;
    (1.0 - complement).copysign(x)
}
