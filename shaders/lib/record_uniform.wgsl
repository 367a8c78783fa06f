// timestep, step_of: the record of a timestep and a direction's share of it, in a uniform bound with a dynamic offset.

@group(0) @binding(0) var<uniform> timestep: Step;

fn step_of(direction: u32) -> DirectionStep {
    return timestep.directions[direction];
}
