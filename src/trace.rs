//! Spans for `tracing`, or nothing without the feature.

/// A span of this crate at level debug: a name, then fields.
#[cfg(feature = "tracing")]
macro_rules! span {
    ($name:literal $(, $field:ident = $value:expr)* $(,)?) => {
        tracing::debug_span!(target: "wgpu_lstm", $name $(, $field = $value)*)
    };
}

/// Without the feature: no span, and the fields are not computed.
#[cfg(not(feature = "tracing"))]
macro_rules! span {
    ($name:literal $(, $field:ident = $value:expr)* $(,)?) => {{
        if false {
            $(let _ = &$value;)*
        }
        $crate::trace::NoSpan
    }};
}

pub(crate) use span;
#[cfg(feature = "tracing")]
pub(crate) use tracing::Instrument;

#[cfg(not(feature = "tracing"))]
pub(crate) use without::{Instrument, NoSpan};

#[cfg(not(feature = "tracing"))]
mod without {
    /// In place of a span.
    pub(crate) struct NoSpan;

    impl NoSpan {
        /// In place of entering it.
        #[cfg_attr(not(feature = "gpu"), allow(dead_code, reason = "only the GPU path has spans that are not futures"))]
        pub(crate) fn entered(self) -> Self {
            self
        }
    }

    /// In place of running a future in a span.
    pub(crate) trait Instrument: Sized {
        /// The future itself.
        fn instrument(self, _span: NoSpan) -> Self {
            self
        }
    }

    impl<F: Future> Instrument for F {}
}
