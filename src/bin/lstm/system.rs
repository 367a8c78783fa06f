//! Why a GPU that the system shows has no adapter; on Linux, from what lies in the file system.
//!
//! In:  [`System`], a root folder and the environment; the adapters that wgpu lists.
//! Out: [`MissingGpu`]: each GPU of a vendor that no adapter has, with the evidence.
//! Elsewhere than on Linux there is no such tree, and nothing is said.

use std::fs;
use std::path::{Path, PathBuf};

use wgpu_lstm::AdapterReport;

/// Where to look.
pub(crate) struct System {
    /// `/`, or a test's folder.
    root: PathBuf,
    variable: Variables,
}

/// Reads an environment variable.
type Variables = Box<dyn Fn(&str) -> Option<String>>;

/// A GPU without an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MissingGpu {
    /// `an NVIDIA GPU (PCI 0000:01:00.0, device 2330)`
    pub(crate) name: String,
    /// Its PCI address; empty where there is none.
    pub(crate) address: String,
    /// One sentence each.
    pub(crate) reasons: Vec<String>,
}

/// A maker of GPUs, and how its Vulkan driver shows.
struct Vendor {
    id: u32,
    name: &'static str,
    /// Parts of the file names of its driver manifests.
    manifests: &'static [&'static str],
}

const NVIDIA: u32 = 0x10de;
const VENDORS: [Vendor; 3] = [
    Vendor { id: NVIDIA, name: "an NVIDIA GPU", manifests: &["nvidia", "nouveau"] },
    Vendor { id: 0x1002, name: "an AMD GPU", manifests: &["radeon", "amd"] },
    Vendor { id: 0x8086, name: "an Intel GPU", manifests: &["intel"] },
];

/// A GPU on the PCI bus.
struct PciGpu {
    address: String,
    vendor: &'static Vendor,
    device: String,
    /// The kernel driver bound to it.
    driver: Option<String>,
}

/// GPUs whose vendor none of the adapters has.
pub(crate) fn missing_gpus(system: &System, adapters: &[AdapterReport]) -> Vec<MissingGpu> {
    let mut missing: Vec<MissingGpu> = system
        .pci_gpus()
        .into_iter()
        .filter(|gpu| !adapters.iter().any(|a| a.vendor == gpu.vendor.id))
        .map(|gpu| MissingGpu {
            name: format!("{} (PCI {}, device {})", gpu.vendor.name, gpu.address, gpu.device),
            reasons: system.reasons(&gpu),
            address: gpu.address,
        })
        .collect();
    if system.exists("dev/dxg") && adapters.iter().all(|a| a.is_software) {
        missing.push(MissingGpu {
            name: "A GPU of the Windows host (/dev/dxg)".into(),
            address: String::new(),
            reasons: vec![
                "WSL passes it on to CUDA and Direct3D 12; Vulkan needs Mesa's driver `dzn` (Dozen), \
                 or run the Windows build of this program"
                    .into(),
            ],
        });
    }
    missing
}

impl System {
    /// The machine that runs this program.
    pub(crate) fn this_machine() -> Self {
        Self { root: PathBuf::from("/"), variable: Box::new(|name| std::env::var(name).ok()) }
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative.trim_start_matches('/'))
    }

    fn exists(&self, relative: &str) -> bool {
        self.path(relative).exists()
    }

    fn variable(&self, name: &str) -> Option<String> {
        (self.variable)(name).filter(|value| !value.is_empty())
    }

    /// Entries of a folder, sorted; none if it cannot be read.
    fn entries(&self, relative: &str) -> Vec<PathBuf> {
        let mut entries: Vec<PathBuf> =
            fs::read_dir(self.path(relative)).into_iter().flatten().flatten().map(|e| e.path()).collect();
        entries.sort_unstable();
        entries
    }

    fn pci_gpus(&self) -> Vec<PciGpu> {
        let read = |path: PathBuf| fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
        let mut gpus = Vec::new();
        for device in self.entries("sys/bus/pci/devices") {
            // Base class 03 is a display controller: 00 VGA, 02 3D, 80 other.
            let class = read(device.join("class"));
            if !["0x0300", "0x0302", "0x0380"].iter().any(|prefix| class.starts_with(prefix)) {
                continue;
            }
            let id = read(device.join("vendor"));
            let id = u32::from_str_radix(id.trim_start_matches("0x"), 16).unwrap_or(0);
            let Some(vendor) = VENDORS.iter().find(|v| v.id == id) else { continue };
            let name_of = |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned());
            gpus.push(PciGpu {
                address: name_of(&device).unwrap_or_default(),
                vendor,
                device: read(device.join("device")).trim_start_matches("0x").to_owned(),
                driver: fs::read_link(device.join("driver")).ok().as_deref().and_then(name_of),
            });
        }
        gpus
    }

    fn reasons(&self, gpu: &PciGpu) -> Vec<String> {
        let mut reasons = Vec::new();
        reasons.extend(self.kernel_reason(gpu));
        reasons.extend(self.device_file_reason(gpu));
        if self.find_library("libvulkan.so.1").is_none() {
            reasons.push("the Vulkan loader libvulkan.so.1 was not found (Debian, Ubuntu: package libvulkan1)".into());
        }
        reasons.extend(self.manifest_reason(gpu));
        reasons.extend(self.container_reason(gpu));
        if let Some(value) = self.variable("WGPU_BACKEND") {
            reasons.push(format!("WGPU_BACKEND={value} limits where adapters are looked for"));
        }
        if reasons.is_empty() {
            reasons.push(
                "loader, driver manifest and device files are there; `vulkaninfo --summary` may tell more".into(),
            );
        }
        reasons
    }

    fn kernel_reason(&self, gpu: &PciGpu) -> Option<String> {
        match gpu.driver.as_deref() {
            Some(driver) if driver.starts_with("vfio") || driver == "pci-stub" => {
                Some(format!("the kernel has set it aside for virtual machines (driver {driver})"))
            }
            _ => None,
        }
    }

    /// The device files that a Vulkan driver opens.
    fn device_file_reason(&self, gpu: &PciGpu) -> Option<String> {
        let in_container = "in a container, the GPU was not passed on";
        if gpu.vendor.id == NVIDIA && gpu.driver.as_deref() != Some("nouveau") {
            let is_gpu = |path: &PathBuf| {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                name.strip_prefix("nvidia").is_some_and(|n| n.chars().all(|c| c.is_ascii_digit()) && !n.is_empty())
            };
            let files: Vec<PathBuf> = self.entries("dev").into_iter().filter(is_gpu).collect();
            if files.is_empty() {
                return Some(format!(
                    "there is no /dev/nvidia0: NVIDIA's kernel module is not loaded, or {in_container} (docker run --gpus all)"
                ));
            }
            return no_access(&files).map(|file| format!("no permission to open /dev/{file}"));
        }
        let is_render = |path: &PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("renderD"));
        let files: Vec<PathBuf> = self.entries("dev/dri").into_iter().filter(is_render).collect();
        if files.is_empty() {
            return Some(format!(
                "there is no /dev/dri/renderD*: its kernel driver is not loaded, or {in_container} (docker run --device /dev/dri)"
            ));
        }
        no_access(&files)
            .map(|file| format!("no permission to open /dev/dri/{file}: join the group that owns it, usually render"))
    }

    /// Whether the loader finds a manifest for the GPU, and the library that it names.
    fn manifest_reason(&self, gpu: &PciGpu) -> Option<String> {
        let override_name =
            ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"].into_iter().find(|name| self.variable(name).is_some());
        let listed = |name: &str| -> Vec<PathBuf> {
            let value = self.variable(name).unwrap_or_default();
            value.split(':').filter(|p| !p.is_empty()).map(|p| self.path(p)).collect()
        };
        let mut manifests = match override_name {
            Some(name) => listed(name),
            None => {
                let folders = ["usr/share/vulkan/icd.d", "usr/local/share/vulkan/icd.d", "etc/vulkan/icd.d"];
                let found = folders.iter().flat_map(|folder| self.entries(folder));
                found.chain(listed("VK_ADD_DRIVER_FILES")).collect()
            }
        };
        // A listed folder stands for the manifests in it.
        manifests = manifests
            .into_iter()
            .flat_map(|path| match fs::read_dir(&path) {
                Ok(entries) => entries.flatten().map(|e| e.path()).collect(),
                Err(_) => vec![path],
            })
            .filter(|path| path.extension().is_some_and(|e| e == "json") && path.exists())
            .collect();
        let file_name = |path: &PathBuf| path.file_name().map_or(String::new(), |n| n.to_string_lossy().into_owned());
        let of_vendor: Vec<&PathBuf> =
            manifests.iter().filter(|p| gpu.vendor.manifests.iter().any(|part| file_name(p).contains(part))).collect();
        if of_vendor.is_empty() {
            let found: Vec<String> = manifests.iter().map(file_name).collect();
            let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
            return Some(match override_name {
                Some(name) => {
                    format!("{name} hides the system's Vulkan drivers and names none for it (found: {found})")
                }
                None => format!(
                    "no Vulkan driver for it is installed: no manifest in /usr/share/vulkan/icd.d or /etc/vulkan/icd.d \
                     is of this vendor (found: {found})"
                ),
            });
        }
        let libraries: Vec<String> = of_vendor.iter().filter_map(|path| library_path(path)).collect();
        let present = |library: &String| self.find_library(library).is_some();
        if !libraries.is_empty() && !libraries.iter().any(present) {
            return Some(format!(
                "the driver's library {} was not found, though its manifest is there",
                libraries.join(", ")
            ));
        }
        None
    }

    fn container_reason(&self, gpu: &PciGpu) -> Option<String> {
        if gpu.vendor.id != NVIDIA {
            return None;
        }
        let capabilities = self.variable("NVIDIA_DRIVER_CAPABILITIES");
        let has_graphics = |c: &String| c.split(',').any(|part| matches!(part.trim(), "all" | "graphics"));
        match capabilities {
            Some(c) if !has_graphics(&c) => Some(format!(
                "NVIDIA_DRIVER_CAPABILITIES={c} leaves Vulkan out of the container: set it to `all` or add `graphics`"
            )),
            None if self.find_library("libcuda.so.1").is_some()
                && self.find_library("libGLX_nvidia.so.0").is_none() =>
            {
                Some(
                    "libcuda.so.1 is here and libGLX_nvidia.so.0, which has NVIDIA's Vulkan driver, is not: in a \
                     container set NVIDIA_DRIVER_CAPABILITIES=all"
                        .into(),
                )
            }
            _ => None,
        }
    }

    /// Looks for a shared library where loaders look: its own path, LD_LIBRARY_PATH, the usual folders.
    fn find_library(&self, name: &str) -> Option<PathBuf> {
        if name.contains('/') {
            return Some(self.path(name)).filter(|path| path.exists());
        }
        let listed = self.variable("LD_LIBRARY_PATH").unwrap_or_default();
        let mut folders: Vec<PathBuf> = listed.split(':').filter(|p| !p.is_empty()).map(|p| self.path(p)).collect();
        for base in ["lib", "lib64", "usr/lib", "usr/lib64", "usr/local/lib", "usr/local/lib64"] {
            folders.push(self.path(base));
        }
        // Debian's usr/lib/x86_64-linux-gnu and the like.
        let triplets = ["lib", "usr/lib"].into_iter().flat_map(|base| self.entries(base));
        folders.extend(triplets.filter(|path| path.to_string_lossy().contains("-linux-")));
        folders.into_iter().map(|folder| folder.join(name)).find(|path| path.exists())
    }
}

/// The first of the device files that this user may not open, by name; none if one can be opened.
fn no_access(files: &[PathBuf]) -> Option<String> {
    let open = |path: &PathBuf| fs::OpenOptions::new().read(true).write(true).open(path);
    let denied = |path: &&PathBuf| open(path).is_err_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied);
    let first = files.iter().find(denied)?;
    let any_opens = files.iter().any(|path| open(path).is_ok());
    (!any_opens).then(|| first.file_name().map_or(String::new(), |n| n.to_string_lossy().into_owned()))
}

/// `ICD.library_path` of a manifest.
fn library_path(manifest: &Path) -> Option<String> {
    let text = fs::read_to_string(manifest).ok()?;
    let json: serde_json::Value = serde_json::from_str(&text).ok()?;
    Some(json.get("ICD")?.get("library_path")?.as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// A file system for one test.
    struct Machine {
        root: PathBuf,
        variables: Vec<(String, String)>,
    }

    impl Machine {
        /// An empty machine.
        fn new() -> Self {
            static COUNT: AtomicUsize = AtomicUsize::new(0);
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let root = std::env::temp_dir().join(format!("lstm-system-{}-{number}", std::process::id()));
            fs::create_dir_all(&root).unwrap();
            Self { root, variables: Vec::new() }
        }

        fn file(self, path: &str, text: &str) -> Self {
            let path = self.root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
            self
        }

        fn without(self, path: &str) -> Self {
            fs::remove_file(self.root.join(path)).unwrap();
            self
        }

        fn variable(mut self, name: &str, value: &str) -> Self {
            self.variables.push((name.into(), value.into()));
            self
        }

        fn pci(self, address: &str, class: &str, vendor: &str) -> Self {
            let folder = format!("sys/bus/pci/devices/{address}");
            self.file(&format!("{folder}/class"), &format!("{class}\n"))
                .file(&format!("{folder}/vendor"), &format!("{vendor}\n"))
                .file(&format!("{folder}/device"), "0x2330\n")
        }

        /// A machine with an NVIDIA GPU and all that its Vulkan driver needs.
        fn nvidia() -> Self {
            Self::new()
                .pci("0000:01:00.0", "0x030200", "0x10de")
                .file("dev/nvidia0", "")
                .file("usr/lib/x86_64-linux-gnu/libvulkan.so.1", "")
                .file("usr/lib/x86_64-linux-gnu/libGLX_nvidia.so.0", "")
                .file("etc/vulkan/icd.d/nvidia_icd.json", r#"{ "ICD": { "library_path": "libGLX_nvidia.so.0" } }"#)
        }

        fn missing(&self, adapters: &[AdapterReport]) -> Vec<MissingGpu> {
            let variables = self.variables.clone();
            let variable = move |name: &str| variables.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
            missing_gpus(&System { root: self.root.clone(), variable: Box::new(variable) }, adapters)
        }

        /// The reasons for the only missing GPU.
        fn reasons(&self) -> Vec<String> {
            let missing = self.missing(&[]);
            assert_eq!(missing.len(), 1, "{missing:?}");
            missing.into_iter().next().unwrap().reasons
        }
    }

    impl Drop for Machine {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.root);
        }
    }

    #[track_caller]
    fn one_reason(machine: &Machine, needle: &str) {
        let reasons = machine.reasons();
        assert!(reasons.len() == 1 && reasons[0].contains(needle), "{reasons:?}");
    }

    #[test]
    fn only_gpus_of_known_vendors_are_reported() {
        assert_eq!(Machine::new().missing(&[]), []);
        let board = Machine::new()
            .pci("0000:00:02.0", "0x030000", "0x1a03") // the display chip of a server's management board
            .pci("0000:00:03.0", "0x020000", "0x8086"); // a network card
        assert_eq!(board.missing(&[]), []);
        let missing = Machine::nvidia().missing(&[]);
        assert_eq!(missing[0].name, "an NVIDIA GPU (PCI 0000:01:00.0, device 2330)");
        assert_eq!(missing[0].address, "0000:01:00.0");
    }

    #[test]
    fn a_complete_driver_leaves_no_reason() {
        one_reason(&Machine::nvidia(), "vulkaninfo");
    }

    #[test]
    fn each_missing_part_is_named() {
        one_reason(&Machine::nvidia().without("usr/lib/x86_64-linux-gnu/libvulkan.so.1"), "libvulkan.so.1");
        one_reason(&Machine::nvidia().without("dev/nvidia0"), "no /dev/nvidia0");
        one_reason(
            &Machine::nvidia().without("usr/lib/x86_64-linux-gnu/libGLX_nvidia.so.0"),
            "libGLX_nvidia.so.0 was not found",
        );
        let software_only = Machine::nvidia()
            .without("etc/vulkan/icd.d/nvidia_icd.json")
            .file("usr/share/vulkan/icd.d/lvp_icd.x86_64.json", "{}");
        one_reason(&software_only, "found: lvp_icd.x86_64.json");
    }

    #[test]
    fn a_loader_on_the_library_path_counts() {
        let machine = Machine::nvidia()
            .without("usr/lib/x86_64-linux-gnu/libvulkan.so.1")
            .file("opt/vulkan/libvulkan.so.1", "")
            .variable("LD_LIBRARY_PATH", "/nowhere:/opt/vulkan");
        one_reason(&machine, "vulkaninfo");
    }

    #[test]
    fn variables_that_hide_drivers_are_named() {
        let hidden = |name: &str| Machine::nvidia().file("opt/lvp_icd.json", "{}").variable(name, "/opt/lvp_icd.json");
        for name in ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"] {
            one_reason(&hidden(name), &format!("{name} hides"));
        }
        one_reason(&hidden("VK_ADD_DRIVER_FILES"), "vulkaninfo");
        one_reason(&Machine::nvidia().variable("WGPU_BACKEND", "dx12"), "WGPU_BACKEND=dx12");
        let container = Machine::nvidia().variable("NVIDIA_DRIVER_CAPABILITIES", "compute,utility");
        one_reason(&container, "NVIDIA_DRIVER_CAPABILITIES=compute,utility");
        one_reason(&Machine::nvidia().variable("NVIDIA_DRIVER_CAPABILITIES", "graphics,compute"), "vulkaninfo");
    }

    #[test]
    fn a_container_with_the_compute_part_only_is_recognised() {
        let machine = Machine::nvidia()
            .without("usr/lib/x86_64-linux-gnu/libGLX_nvidia.so.0")
            .without("etc/vulkan/icd.d/nvidia_icd.json")
            .file("usr/lib/x86_64-linux-gnu/libcuda.so.1", "");
        let reasons = machine.reasons().join(" | ");
        assert!(reasons.contains("found: none") && reasons.contains("NVIDIA_DRIVER_CAPABILITIES=all"), "{reasons}");
    }

    #[test]
    fn other_vendors_need_a_render_node() {
        let amd = || {
            Machine::new()
                .pci("0000:03:00.0", "0x030000", "0x1002")
                .file("usr/lib64/libvulkan.so.1", "")
                .file("usr/share/vulkan/icd.d/radeon_icd.x86_64.json", "{}")
        };
        one_reason(&amd(), "no /dev/dri/renderD*");
        one_reason(&amd().file("dev/dri/renderD128", ""), "vulkaninfo");
    }

    #[test]
    fn wsl_is_recognised_where_only_software_runs() {
        let missing = Machine::new().file("dev/dxg", "").missing(&[]);
        assert_eq!(missing.len(), 1);
        assert!(missing[0].reasons[0].contains("dzn"));
    }

    #[cfg(unix)]
    #[test]
    fn a_gpu_set_aside_for_virtual_machines_says_so() {
        let machine = Machine::nvidia();
        let link = machine.root.join("sys/bus/pci/devices/0000:01:00.0/driver");
        std::os::unix::fs::symlink("../../../bus/pci/drivers/vfio-pci", link).unwrap();
        one_reason(&machine, "vfio-pci");
    }
}
