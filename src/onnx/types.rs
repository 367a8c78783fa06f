//! Element types of the values that nodes make, as far as the graph tells.

use std::collections::HashMap;

use super::element::ElementType;
use super::graph::{Node, Scope, ValueId, Values};

/// Writes down the types of all values of a scope, and of those inside it.
pub(super) fn infer(scope: &Scope, values: &mut Values) {
    for node in &scope.nodes {
        hand_in(node, values);
        for (_, inner) in &node.scopes {
            infer(inner, values);
        }
        for (index, output) in node.outputs.iter().enumerate() {
            if let (Some(id), Some(element)) = (*output, made(node, index, &values.types)) {
                values.types.insert(id, element);
            }
        }
    }
}

/// Types of what a node gives to the graphs inside it.
fn hand_in(node: &Node, values: &mut Values) {
    let Some(body) = node.scope("body") else { return };
    let given: Vec<Option<ElementType>> = match node.op_type.as_str() {
        "Loop" => {
            let carried = node.inputs.iter().skip(2).map(|id| id.and_then(|id| values.types.get(&id).copied()));
            [Some(ElementType::I64), Some(ElementType::Bool)].into_iter().chain(carried).collect()
        }
        "Scan" => node.inputs.iter().map(|id| id.and_then(|id| values.types.get(&id).copied())).collect(),
        _ => return,
    };
    for (&id, element) in body.inputs.iter().zip(given) {
        if let Some(element) = element {
            values.types.insert(id, element);
        }
    }
}

/// The type of an output.
fn made(node: &Node, index: usize, types: &HashMap<ValueId, ElementType>) -> Option<ElementType> {
    let input = |i: usize| node.input(i).and_then(|id| types.get(&id).copied());
    let named = |name: &str| {
        let number = node.int(name).ok()??;
        i32::try_from(number).ok().filter(|n| *n != 0).and_then(ElementType::of)
    };
    let inner = |name: &str, index: usize| node.scope(name)?.outputs.get(index).and_then(|id| types.get(id).copied());
    match (node.op_type.as_str(), index) {
        ("Shape" | "Size" | "ArgMax" | "ArgMin" | "NonZero" | "SequenceLength" | "NonMaxSuppression", _)
        | ("TopK" | "MaxPool", 1)
        | ("Unique", 1..) => Some(ElementType::I64),
        (
            "Equal" | "Greater" | "Less" | "GreaterOrEqual" | "LessOrEqual" | "And" | "Or" | "Xor" | "Not" | "IsNaN"
            | "IsInf",
            _,
        )
        | ("Dropout", 1) => Some(ElementType::Bool),
        ("Cast", _) => named("to"),
        ("CastLike" | "Where", _) => input(1),
        ("OneHot", _) => input(2),
        ("ConstantOfShape", _) => Some(node.tensor("value").map_or(ElementType::F32, |v| v.element_type())),
        ("EyeLike", _) => named("dtype").or_else(|| input(0)),
        ("HannWindow" | "HammingWindow" | "BlackmanWindow", _) => named("output_datatype").or(Some(ElementType::F32)),
        ("MatMulInteger" | "ConvInteger", _) => Some(ElementType::I32),
        ("QuantizeLinear", _) => input(2).or_else(|| named("output_dtype")).or(Some(ElementType::U8)),
        ("DequantizeLinear", _) => named("output_dtype").or_else(|| input(1)),
        ("DynamicQuantizeLinear", 1) => Some(ElementType::F32),
        ("DynamicQuantizeLinear", _) => Some(ElementType::U8),
        ("If", _) => inner("then_branch", index).or_else(|| inner("else_branch", index)),
        ("Loop", _) => inner("body", index + 1),
        ("Scan", _) => inner("body", index),
        _ => input(0),
    }
}
