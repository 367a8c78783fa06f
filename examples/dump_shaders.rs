//! Prints every kernel variant as JSON: source, entry point, constants and bindings, for checks outside Rust
//! (`tools/check_shaders`).

use serde_json::json;
use wgpu_lstm::internals::{BindingKind, KernelId};

fn main() {
    let modules: Vec<_> = KernelId::all()
        .into_iter()
        .map(|id| {
            let bindings: Vec<_> = id
                .kernel
                .bindings()
                .iter()
                .enumerate()
                .map(|(binding, b)| {
                    let (kind, dynamic_offset) = match b.kind {
                        BindingKind::DynamicUniform { .. } => ("uniform", true),
                        BindingKind::Uniform { .. } => ("uniform", false),
                        BindingKind::Read => ("read-only-storage", false),
                        BindingKind::ReadWrite => ("storage", false),
                    };
                    json!({ "group": 0, "binding": binding, "kind": kind, "dynamic_offset": dynamic_offset })
                })
                .collect();
            let constants: serde_json::Map<_, _> =
                id.constants().into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect();
            json!({
                "name": id.name(),
                "label": id.label(),
                "wgsl": id.source(),
                "entry_point": id.kernel.entry_point(),
                "constants": constants,
                "bindings": bindings,
            })
        })
        .collect();
    println!("{}", json!({ "modules": modules }));
}
