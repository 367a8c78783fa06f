// timestep, step_of: the record of a timestep and a direction's share of it, as immediates. Their elements are reached by
// constants alone, since a driver may keep them in registers.

var<immediate> timestep: Step;

fn step_of(direction: u32) -> DirectionStep {
    if direction == 0u {
        return timestep.directions[0];
    }
    return timestep.directions[1];
}
