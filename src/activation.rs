//! Activation functions: their names, parameters and formulas.
//!
//! In:  a name and parameters, as a file or a caller gives them.
//! Out: [`Activation`], which the reference, the CPU backend and the kernels each compute in their own way.
//! Not here: any arithmetic.

use std::fmt;

/// An activation function, applied element by element: the eleven that
/// [ONNX's recurrent operators](https://onnx.ai/onnx/operators/onnx__LSTM.html) name, with their formulas.
///
/// Parameters must be finite. [`Activation::named`] has ONNX's default parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// 1 / (1 + e^−x)
    Sigmoid,
    /// tanh x
    Tanh,
    /// max(0, x)
    Relu,
    /// alpha·x + beta
    Affine {
        /// 1 unless given.
        alpha: f32,
        /// 0 unless given.
        beta: f32,
    },
    /// x where x ≥ 0, otherwise alpha·x
    LeakyRelu {
        /// 0.01 unless given.
        alpha: f32,
    },
    /// x where x ≥ alpha, otherwise 0
    ThresholdedRelu {
        /// 1 unless given.
        alpha: f32,
    },
    /// alpha·tanh(beta·x)
    ScaledTanh {
        /// 1 unless given.
        alpha: f32,
        /// 1 unless given.
        beta: f32,
    },
    /// min(max(alpha·x + beta, 0), 1)
    HardSigmoid {
        /// 0.2 unless given.
        alpha: f32,
        /// 0.5 unless given.
        beta: f32,
    },
    /// x where x ≥ 0, otherwise alpha·(e^x − 1)
    Elu {
        /// 1 unless given.
        alpha: f32,
    },
    /// x / (1 + |x|)
    Softsign,
    /// ln(1 + e^x)
    Softplus,
}

impl Activation {
    /// One of each kind, with ONNX's default parameters.
    pub const ALL: [Activation; 11] = [
        Activation::Sigmoid,
        Activation::Tanh,
        Activation::Relu,
        Activation::Affine { alpha: 1.0, beta: 0.0 },
        Activation::LeakyRelu { alpha: 0.01 },
        Activation::ThresholdedRelu { alpha: 1.0 },
        Activation::ScaledTanh { alpha: 1.0, beta: 1.0 },
        Activation::HardSigmoid { alpha: 0.2, beta: 0.5 },
        Activation::Elu { alpha: 1.0 },
        Activation::Softsign,
        Activation::Softplus,
    ];

    /// The function of this name, ignoring case, with its default parameters; `None` if ONNX has no such name.
    pub fn named(name: &str) -> Option<Activation> {
        Self::ALL.into_iter().find(|a| a.name().eq_ignore_ascii_case(name))
    }

    /// ONNX's name.
    pub fn name(self) -> &'static str {
        match self {
            Activation::Sigmoid => "Sigmoid",
            Activation::Tanh => "Tanh",
            Activation::Relu => "Relu",
            Activation::Affine { .. } => "Affine",
            Activation::LeakyRelu { .. } => "LeakyRelu",
            Activation::ThresholdedRelu { .. } => "ThresholdedRelu",
            Activation::ScaledTanh { .. } => "ScaledTanh",
            Activation::HardSigmoid { .. } => "HardSigmoid",
            Activation::Elu { .. } => "Elu",
            Activation::Softsign => "Softsign",
            Activation::Softplus => "Softplus",
        }
    }

    /// alpha and beta, each only where the function has one.
    pub fn parameters(self) -> (Option<f32>, Option<f32>) {
        match self {
            Activation::Affine { alpha, beta }
            | Activation::ScaledTanh { alpha, beta }
            | Activation::HardSigmoid { alpha, beta } => (Some(alpha), Some(beta)),
            Activation::LeakyRelu { alpha } | Activation::ThresholdedRelu { alpha } | Activation::Elu { alpha } => {
                (Some(alpha), None)
            }
            Activation::Sigmoid | Activation::Tanh | Activation::Relu | Activation::Softsign | Activation::Softplus => {
                (None, None)
            }
        }
    }

    /// The same function with these parameters; `None` keeps one, and so does a parameter the function does not have.
    #[must_use]
    pub fn with_parameters(self, new_alpha: Option<f32>, new_beta: Option<f32>) -> Activation {
        let mut changed = self;
        match &mut changed {
            Activation::Affine { alpha, beta }
            | Activation::ScaledTanh { alpha, beta }
            | Activation::HardSigmoid { alpha, beta } => {
                *alpha = new_alpha.unwrap_or(*alpha);
                *beta = new_beta.unwrap_or(*beta);
            }
            Activation::LeakyRelu { alpha } | Activation::ThresholdedRelu { alpha } | Activation::Elu { alpha } => {
                *alpha = new_alpha.unwrap_or(*alpha);
            }
            Activation::Sigmoid | Activation::Tanh | Activation::Relu | Activation::Softsign | Activation::Softplus => {}
        }
        changed
    }
}

/// `HardSigmoid(alpha 0.2, beta 0.5)`
impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self.parameters() {
            (None, _) => Ok(()),
            (Some(alpha), None) => write!(f, "(alpha {alpha})"),
            (Some(alpha), Some(beta)) => write!(f, "(alpha {alpha}, beta {beta})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_find_their_function_and_parameters_their_place() {
        for activation in Activation::ALL {
            assert_eq!(Activation::named(&activation.name().to_uppercase()), Some(activation));
            let changed = activation.with_parameters(Some(3.0), Some(4.0));
            let (alpha, beta) = activation.parameters();
            assert_eq!(changed.parameters(), (alpha.map(|_| 3.0), beta.map(|_| 4.0)));
            assert_eq!(changed.with_parameters(alpha, beta), activation);
        }
        assert_eq!(Activation::named("gelu"), None);
        assert_eq!(Activation::HardSigmoid { alpha: 0.2, beta: 0.5 }.to_string(), "HardSigmoid(alpha 0.2, beta 0.5)");
    }
}
