//! `lstm devices`: adapters, limits, which one `auto` chooses and why, and what keeps a GPU from being one.

use serde_json::{Value, json};
use wgpu_lstm::{AdapterReport, BackendKind, Engine, EngineOptions};

use crate::args::DevicesOptions;
use crate::common::failure::{Result, say};
use crate::common::units::bytes;
use crate::system::{self, MissingGpu, System};

pub(crate) fn devices(options: &DevicesOptions) -> Result<()> {
    let adapters = pollster::block_on(Engine::adapters());
    let chosen = Engine::open_blocking(EngineOptions::default());
    let missing = system::missing_gpus(&System::this_machine(), &adapters);
    if options.json {
        return say!("{:#}", to_json(&adapters, &chosen, &missing));
    }
    match &chosen {
        Ok(engine) => {
            say!("auto: {}", engine.device().name)?;
            say!("  because: {}", engine.device().reason)?;
        }
        Err(e) => say!("auto: fails: {e}")?,
    }
    say!("")?;
    if adapters.is_empty() {
        say!("no adapters")?;
    }
    for adapter in &adapters {
        print_adapter(adapter)?;
    }
    say!("cpu  the CPU backend")?;
    say!("reference  the equations, one after the other: slow, for comparison")?;
    for gpu in &missing {
        say!("")?;
        say!("{} is in this machine, but no adapter drives it", gpu.name)?;
        for reason in &gpu.reasons {
            say!("  {reason}")?;
        }
    }
    Ok(())
}

fn print_adapter(adapter: &AdapterReport) -> Result<()> {
    let software = if adapter.is_software { ", software" } else { "" };
    say!("gpu:{}  {}", adapter.index, adapter.name)?;
    say!("  {}, {}{software}", adapter.backend, adapter.device_type)?;
    let driver = [adapter.driver.as_str(), adapter.driver_info.as_str()].join(" ");
    say!("  driver: {}", if driver.trim().is_empty() { "unnamed" } else { driver.trim() })?;
    for (name, value) in &adapter.limits {
        if name.ends_with("_size") {
            say!("  {name}: {}", bytes(*value))?;
        } else {
            say!("  {name}: {value}")?;
        }
    }
    if let Some(why) = &adapter.unusable {
        say!("  cannot be used: {why}")?;
    }
    Ok(())
}

/// What `--json` calls it.
pub(crate) fn kind_name(kind: BackendKind) -> &'static str {
    match kind {
        BackendKind::Gpu => "gpu",
        BackendKind::Cpu => "cpu",
        BackendKind::Reference => "reference",
    }
}

fn to_json(adapters: &[AdapterReport], chosen: &wgpu_lstm::Result<Engine>, missing: &[MissingGpu]) -> Value {
    let auto = match chosen {
        Ok(engine) => {
            let device = engine.device();
            let kind = kind_name(device.kind);
            let index = device.adapter.as_ref().map(|a| a.index);
            json!({ "kind": kind, "name": device.name, "reason": device.reason, "adapter": index })
        }
        Err(e) => json!({ "error": e.to_string() }),
    };
    let adapters: Vec<Value> = adapters
        .iter()
        .map(|a| {
            let limits: serde_json::Map<String, Value> =
                a.limits.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
            json!({
                "index": a.index,
                "name": a.name,
                "backend": a.backend,
                "device_type": a.device_type,
                "driver": a.driver,
                "driver_info": a.driver_info,
                "vendor": a.vendor,
                "device": a.device,
                "is_software": a.is_software,
                "limits": limits,
                "unusable": a.unusable,
            })
        })
        .collect();
    let missing: Vec<Value> = missing
        .iter()
        .map(|gpu| json!({ "name": gpu.name, "pci_address": gpu.address, "reasons": gpu.reasons }))
        .collect();
    json!({ "auto": auto, "adapters": adapters, "gpus_without_adapter": missing })
}
