//! The way in: open a device, load weights, run batches. GPU, CPU backend and reference alike.

use std::fmt;
use std::sync::Arc;

use crate::batch::{BatchOutput, Outputs, SequenceBatch, SequenceOutput, pool_rows};
use crate::counters::{Counters, Request, Tally};
#[cfg_attr(not(feature = "gpu"), allow(unused_imports, reason = "without the GPU path only the docs name them"))]
use crate::error::{Error, ErrorKind, Result, bail};
use crate::options::{AdapterReport, BackendKind, DeviceChoice, DeviceReport, EngineOptions, Precision};
use crate::reference;
use crate::spec::LstmSpec;
use crate::trace::{Instrument, span};
use crate::weights::LstmWeights;

#[cfg(feature = "gpu")]
use crate::auto::{self, Alternative, Choice, Costs};
#[cfg(feature = "cpu")]
use crate::cpu::CpuLstm;
#[cfg(feature = "gpu")]
use crate::gpu::{self, Context, GpuBatch, GpuLstm, GpuOutput, GpuTensor, Job, Waiting};

enum Device {
    #[cfg(feature = "gpu")]
    Gpu(Arc<Context>),
    #[cfg(feature = "cpu")]
    Cpu,
    Reference,
}

/// An opened device. Cheap to clone; many models and threads share one.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<EngineInner>,
}

struct EngineInner {
    device: Device,
    tally: Arc<Tally>,
    report: DeviceReport,
    precision: Precision,
    /// Of a GPU that the CPU backend stands in for where it is faster.
    #[cfg(feature = "gpu")]
    costs: Option<Costs>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("device", &self.inner.report).finish_non_exhaustive()
    }
}

impl Engine {
    /// Opens a device and, on the GPU path, tests its driver. With [`DeviceChoice::Auto`] and a GPU, small models are timed
    /// on it and on the CPU backend, blocking, the first time in a process; see [`Lstm::choice`].
    ///
    /// # Errors
    /// [`DeviceNotFound`](ErrorKind::DeviceNotFound) with the list of adapters if none matches;
    /// [`DeviceFault`](ErrorKind::DeviceFault) if the chosen adapter fails the self-test;
    /// [`Unsupported`](ErrorKind::Unsupported) if the crate was built without the backend.
    pub async fn open(options: EngineOptions) -> Result<Engine> {
        let opened = match &options.device {
            DeviceChoice::Reference => Opened::new(
                Device::Reference,
                DeviceReport {
                    kind: BackendKind::Reference,
                    name: "reference (f32)".into(),
                    reason: "asked for by name".into(),
                    adapter: None,
                    loop_trips: None,
                },
            ),
            DeviceChoice::Cpu => open_cpu("asked for by name".into())?,
            _ => open_gpu(&options).await?,
        };
        Ok(Engine::new(opened, options.precision))
    }

    /// Opens the adapter that `options` names as `auto` would, software adapters included; with these costs if given.
    #[cfg(feature = "gpu")]
    pub(crate) async fn open_auto(options: &EngineOptions, costs: Option<Costs>) -> Result<Engine> {
        let mut opened = open_gpu(options).await?;
        if let Device::Gpu(context) = &opened.device {
            opened.costs = match costs {
                Some(costs) => Some(costs),
                None => auto::costs(context, &opened.report, options).await?,
            };
        }
        Ok(Engine::new(opened, options.precision))
    }

    fn new(opened: Opened, precision: Precision) -> Self {
        let Opened { device, report, .. } = opened;
        let tally = match &device {
            #[cfg(feature = "gpu")]
            Device::Gpu(context) => context.tally.clone(),
            #[allow(unreachable_patterns, reason = "which other devices exist depends on the features")]
            _ => Arc::default(),
        };
        Engine {
            inner: Arc::new(EngineInner {
                device,
                tally,
                report,
                precision,
                #[cfg(feature = "gpu")]
                costs: opened.costs,
            }),
        }
    }

    /// [`Engine::open`], blocking. Not for a browser's main thread.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_blocking(options: EngineOptions) -> Result<Engine> {
        pollster::block_on(Self::open(options))
    }

    /// Shares the device of an application, which was opened with at least
    /// [`required_limits`](Self::required_limits) and [`required_features`](Self::required_features), and tests its driver.
    ///
    /// The engine sets no handler of the device and never blocks in its poll: where it has to wait (here for the
    /// self-test, later in [`Lstm::run`]), it polls without waiting, in short intervals. [`Lstm::record`] does not wait.
    ///
    /// # Errors
    /// [`DeviceLimit`](ErrorKind::DeviceLimit) naming each limit that is too small;
    /// [`DeviceFault`](ErrorKind::DeviceFault) if the driver fails the self-test.
    #[cfg(feature = "gpu")]
    pub async fn from_device(adapter: &wgpu::Adapter, device: wgpu::Device, queue: wgpu::Queue) -> Result<Engine> {
        Self::from_device_with(adapter, device, queue, EngineOptions::default()).await
    }

    /// [`Engine::from_device`] with a memory budget or a limits profile; the choice of a device is not used.
    ///
    /// # Errors
    /// As [`Engine::from_device`].
    #[cfg(feature = "gpu")]
    pub async fn from_device_with(
        adapter: &wgpu::Adapter,
        device: wgpu::Device,
        queue: wgpu::Queue,
        options: EngineOptions,
    ) -> Result<Engine> {
        let context = Context::borrow(device, queue, &options).await?;
        let report = gpu_report(gpu::report(0, adapter), "the application's own device".into(), &context);
        Ok(Engine::new(Opened::new(Device::Gpu(Arc::new(context)), report), options.precision))
    }

    /// The limits to open a device of `adapter` with, so that an engine can share it: what every kernel needs, and the
    /// adapter's largest buffers and bindings.
    #[cfg(feature = "gpu")]
    pub fn required_limits(adapter: &wgpu::Adapter) -> wgpu::Limits {
        gpu::required_limits(adapter, crate::options::LimitsProfile::Adapter)
    }

    /// The features to open a device of `adapter` with, so that an engine can share it: immediates, if the adapter has 128
    /// bytes of them, which are then part of [`required_limits`](Self::required_limits); and mappable primary buffers, if the
    /// adapter shares the host's memory. An engine runs without them too: each timestep reads a uniform instead, and results
    /// are copied before the host reads them.
    #[cfg(feature = "gpu")]
    pub fn required_features(adapter: &wgpu::Adapter) -> wgpu::Features {
        gpu::required_features(adapter, crate::options::LimitsProfile::Adapter)
    }

    /// The device and its queue; `None` if the engine is not on a GPU.
    #[cfg(feature = "gpu")]
    pub fn device_and_queue(&self) -> Option<(&wgpu::Device, &wgpu::Queue)> {
        self.context().map(|c| (&c.device, &c.queue))
    }

    /// Copies an array to a new buffer on the device.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) if the engine is not on a GPU;
    /// [`InvalidInput`](ErrorKind::InvalidInput) if the number of values is not the product of the shape;
    /// [`DeviceLimit`](ErrorKind::DeviceLimit), [`OutOfMemory`](ErrorKind::OutOfMemory).
    #[cfg(feature = "gpu")]
    pub fn upload(&self, values: &[f32], shape: &[usize]) -> Result<GpuTensor> {
        self.need_gpu("Engine::upload")?.upload(values, shape)
    }

    /// Copies an array back from the device, after everything submitted before.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) if the engine is not on a GPU;
    /// [`InvalidInput`](ErrorKind::InvalidInput) if the buffer lacks `BufferUsages::COPY_SRC`;
    /// [`DeviceLost`](ErrorKind::DeviceLost), [`OutOfMemory`](ErrorKind::OutOfMemory).
    #[cfg(feature = "gpu")]
    pub async fn read_back(&self, tensor: &GpuTensor) -> Result<Vec<f32>> {
        self.need_gpu("Engine::read_back")?.read_back(tensor, Waiting::Async).await
    }

    /// [`Engine::read_back`], blocking.
    ///
    /// # Errors
    /// As [`Engine::read_back`].
    #[cfg(feature = "gpu")]
    pub fn read_back_blocking(&self, tensor: &GpuTensor) -> Result<Vec<f32>> {
        pollster::block_on(self.need_gpu("Engine::read_back")?.read_back(tensor, Waiting::Blocking))
    }

    #[cfg(feature = "gpu")]
    fn need_gpu(&self, what: &str) -> Result<&Arc<Context>> {
        match self.context() {
            Some(context) => Ok(context),
            None => bail!(Unsupported, "{what} needs an engine on a GPU; this one is on {}", self.inner.report.name),
        }
    }

    /// The adapters of this machine in order of preference; empty without the feature `gpu`.
    pub async fn adapters() -> Vec<AdapterReport> {
        #[cfg(feature = "gpu")]
        return gpu::list().await.into_iter().map(|l| l.report).collect();
        #[cfg(not(feature = "gpu"))]
        Vec::new()
    }

    /// What the engine has done since it was opened, and what it holds now.
    pub fn counters(&self) -> Counters {
        let counters = self.inner.tally.counters();
        #[cfg(feature = "gpu")]
        if let Some(context) = self.context() {
            return Counters {
                pipelines: context.pipelines.len() as u64,
                in_use_bytes: context.in_use_bytes(),
                idle_bytes: context.idle_bytes(),
                ..counters
            };
        }
        counters
    }

    pub(crate) fn tally(&self) -> &Tally {
        &self.inner.tally
    }

    /// The measured factors by which `auto` chooses; `None` unless it found a GPU.
    #[cfg(feature = "gpu")]
    pub fn costs(&self) -> Option<Costs> {
        self.inner.costs
    }

    /// Measures what the adapter reaches at best: some tenths of a second, blocking, with the device to itself.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) if the engine is not on a GPU;
    /// [`OutOfMemory`](ErrorKind::OutOfMemory), [`DeviceLost`](ErrorKind::DeviceLost).
    #[cfg(all(feature = "gpu", not(target_family = "wasm")))]
    pub fn measure_limits_blocking(&self) -> Result<gpu::AdapterLimits> {
        gpu::measure(self.need_gpu("Engine::measure_limits_blocking")?)
    }

    /// The device and why it was chosen.
    pub fn device(&self) -> &DeviceReport {
        &self.inner.report
    }

    /// Packs and uploads a model. With [`DeviceChoice::Auto`], weights that the GPU has no room for are on the CPU backend alone.
    ///
    /// # Errors
    /// [`DeviceLimit`](ErrorKind::DeviceLimit) if a weight matrix is larger than a binding of the device;
    /// [`OutOfMemory`](ErrorKind::OutOfMemory), [`DeviceLost`](ErrorKind::DeviceLost);
    /// [`InvalidWeights`](ErrorKind::InvalidWeights) if a weight is out of range for [`Precision::F16Weights`].
    pub async fn load(&self, weights: &LstmWeights) -> Result<Lstm> {
        let rounded;
        let weights = match self.inner.precision {
            Precision::F32 => weights,
            Precision::F16Weights => {
                rounded = weights.rounded_to_f16()?;
                &rounded
            }
        };
        #[cfg(feature = "gpu")]
        let alternative = self
            .inner
            .costs
            .zip(self.context())
            .and_then(|(costs, context)| Alternative::new(weights, self.inner.precision, &context.limits, costs));
        let model = match &self.inner.device {
            #[cfg(feature = "gpu")]
            Device::Gpu(context) => match GpuLstm::load(context, weights).await {
                Ok(model) => Model::Gpu(model),
                Err(e) if alternative.is_some() && e.is_for_size() => Model::NotOnGpu(e),
                Err(e) => return Err(e),
            },
            #[cfg(feature = "cpu")]
            Device::Cpu => Model::Cpu(CpuLstm::new(weights, self.inner.precision)),
            Device::Reference => Model::Reference(weights.clone()),
        };
        Ok(Lstm {
            inner: Arc::new(LstmInner {
                engine: self.clone(),
                spec: weights.spec().clone(),
                model,
                #[cfg(feature = "gpu")]
                alternative,
            }),
        })
    }

    /// [`Engine::load`], blocking.
    ///
    /// # Errors
    /// As [`Engine::load`].
    pub fn load_blocking(&self, weights: &LstmWeights) -> Result<Lstm> {
        pollster::block_on(self.load(weights))
    }

    #[cfg(feature = "gpu")]
    pub(crate) fn context(&self) -> Option<&Arc<Context>> {
        match &self.inner.device {
            Device::Gpu(context) => Some(context),
            #[allow(unreachable_patterns, reason = "which other devices exist depends on the features")]
            _ => None,
        }
    }
}

/// What [`Engine::new`] makes an engine of.
struct Opened {
    device: Device,
    report: DeviceReport,
    /// Of a GPU that the CPU backend stands in for where it is faster.
    #[cfg(feature = "gpu")]
    costs: Option<Costs>,
}

impl Opened {
    fn new(device: Device, report: DeviceReport) -> Self {
        Self {
            device,
            report,
            #[cfg(feature = "gpu")]
            costs: None,
        }
    }
}

fn open_cpu(reason: String) -> Result<Opened> {
    #[cfg(feature = "cpu")]
    return Ok(Opened::new(
        Device::Cpu,
        DeviceReport {
            kind: BackendKind::Cpu,
            name: format!("CPU backend, {} threads", crate::cpu::num_threads()),
            reason,
            adapter: None,
            loop_trips: None,
        },
    ));
    #[cfg(not(feature = "cpu"))]
    bail!(Unsupported, "device: the CPU backend was not built in ({reason}); enable the feature `cpu`")
}

#[cfg(not(feature = "gpu"))]
async fn open_gpu(options: &EngineOptions) -> Result<Opened> {
    match &options.device {
        DeviceChoice::Auto => open_cpu("the crate was built without the feature `gpu`".into()),
        other => bail!(Unsupported, "device {other}: the GPU path was not built in; enable the feature `gpu`"),
    }
}

#[cfg(feature = "gpu")]
fn gpu_report(adapter: AdapterReport, reason: String, context: &Context) -> DeviceReport {
    DeviceReport {
        kind: BackendKind::Gpu,
        name: format!("{} ({})", adapter.name, adapter.backend),
        reason,
        adapter: Some(adapter),
        loop_trips: context.limits.loop_trips,
    }
}

/// Opens one adapter; under `auto` with the costs that decide between it and the CPU backend.
#[cfg(feature = "gpu")]
async fn open_adapter(listed: &gpu::Listed, reason: String, options: &EngineOptions) -> Result<Opened> {
    if let Some(why) = &listed.report.unusable {
        return Err(Error::new(ErrorKind::DeviceLimit, why.clone()));
    }
    let context = Arc::new(Context::open(&listed.adapter, options).await?);
    let mut report = gpu_report(listed.report.clone(), reason, &context);
    let costs = match options.device {
        DeviceChoice::Auto => auto::costs(&context, &report, options).await?,
        _ => None,
    };
    if costs.is_some() {
        report.reason += "; each run takes it or the CPU backend, whichever is estimated to be faster";
    }
    Ok(Opened { device: Device::Gpu(context), report, costs })
}

/// Tries the adapters that the choice allows, in order of preference.
#[cfg(feature = "gpu")]
async fn open_gpu(options: &EngineOptions) -> Result<Opened> {
    let adapters = gpu::list().await;
    let reports: Vec<AdapterReport> = adapters.iter().map(|l| l.report.clone()).collect();
    let candidates = candidates(&options.device, &reports)?;
    let mut failures = Vec::new();
    for (index, reason) in candidates {
        let listed = &adapters[index];
        match open_adapter(listed, reason, options).await {
            Ok(mut opened) => {
                for failure in failures {
                    opened.report.reason += &format!("; {failure}");
                }
                return Ok(opened);
            }
            Err(e) if options.device == DeviceChoice::Auto => {
                failures.push(format!("gpu:{index} {} was refused: {e}", listed.report.name));
            }
            Err(e) => return Err(e.context(format!("gpu:{index} {}", listed.report.name))),
        }
    }
    // Only `auto` comes here: every other choice has a candidate that opened or failed.
    let reason = match (failures.is_empty(), reports.is_empty()) {
        (false, _) => failures.join("; "),
        (true, true) => "there is no adapter".to_owned(),
        (true, false) => "there is no hardware GPU, only software adapters".to_owned(),
    };
    open_cpu(reason)
}

/// The adapters that a choice allows, with the reason, in the order in which they are tried.
#[cfg(feature = "gpu")]
fn candidates(choice: &DeviceChoice, adapters: &[AdapterReport]) -> Result<Vec<(usize, String)>> {
    let listing = || {
        let names: Vec<_> = adapters.iter().map(|a| format!("gpu:{} {}", a.index, a.name)).collect();
        format!("there are {}", names.join(", "))
    };
    let found: Vec<(usize, String)> = match choice {
        DeviceChoice::Auto => adapters
            .iter()
            .filter(|a| !a.is_software)
            .map(|a| (a.index, format!("the first hardware GPU that works ({})", a.device_type)))
            .collect(),
        DeviceChoice::Gpu => {
            let usable = adapters.iter().find(|a| a.unusable.is_none()).or(adapters.first());
            usable.map(|a| (a.index, "the best adapter there is".to_owned())).into_iter().collect()
        }
        DeviceChoice::GpuIndex(index) => {
            adapters.get(*index).map(|a| (a.index, "asked for by number".to_owned())).into_iter().collect()
        }
        DeviceChoice::Name(name) => {
            let wanted = name.to_ascii_lowercase();
            let matches = |text: &str| text.to_ascii_lowercase().contains(&wanted);
            adapters
                .iter()
                .find(|a| matches(&a.name) || matches(&a.driver) || matches(&a.driver_info))
                .map(|a| (a.index, format!("its name contains {name:?}")))
                .into_iter()
                .collect()
        }
        DeviceChoice::Cpu | DeviceChoice::Reference => Vec::new(),
    };
    if adapters.is_empty() && *choice != DeviceChoice::Auto {
        bail!(
            DeviceNotFound,
            "device {choice}: there is no adapter; it takes a driver for Vulkan, Metal or DirectX 12 (`cpu` works without)"
        );
    }
    if found.is_empty() && *choice != DeviceChoice::Auto {
        bail!(
            DeviceNotFound,
            "device: expected auto, gpu, gpu:N, cpu, reference or a part of an adapter's name, found {:?}; {}",
            choice.to_string(),
            listing()
        );
    }
    Ok(found)
}

/// A loaded model. Cheap to clone, `Send + Sync`; several threads may run batches at once.
#[derive(Clone)]
pub struct Lstm {
    inner: Arc<LstmInner>,
}

struct LstmInner {
    engine: Engine,
    spec: LstmSpec,
    model: Model,
    /// Under `auto` with a GPU.
    #[cfg(feature = "gpu")]
    alternative: Option<Alternative>,
}

enum Model {
    #[cfg(feature = "gpu")]
    Gpu(GpuLstm),
    /// Under `auto`, and the weights do not fit the GPU, whose error this is: the alternative runs everything.
    #[cfg(feature = "gpu")]
    NotOnGpu(Error),
    #[cfg(feature = "cpu")]
    Cpu(CpuLstm),
    Reference(LstmWeights),
}

impl fmt::Debug for Lstm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lstm")
            .field("spec", &self.inner.spec)
            .field("engine", &self.inner.engine)
            .finish_non_exhaustive()
    }
}

impl Lstm {
    /// The spec.
    pub fn spec(&self) -> &LstmSpec {
        &self.inner.spec
    }

    /// The engine the model is loaded on.
    pub fn engine(&self) -> &Engine {
        &self.inner.engine
    }

    /// Which device would run a batch, and the estimates that say so; `None` unless the engine was opened with
    /// [`DeviceChoice::Auto`] and found a GPU. The same model and lengths have the same choice as long as the process
    /// lives, but for a batch that barely fits the memory budget: how its work is cut follows the device's speed so far. The
    /// devices agree within the tolerance of docs/numerics.md; who needs the same bits for every shape names one.
    ///
    /// Where the GPU is estimated to be faster, this plans the batch to see whether it fits.
    #[cfg(feature = "gpu")]
    pub fn choice(&self, batch: &SequenceBatch<'_>) -> Option<Choice> {
        let choice = self.inner.alternative.as_ref()?.choose(batch);
        let fits = match (self.gpu(), choice.kind) {
            (Some(model), BackendKind::Gpu) => self.fits(model, batch),
            (model, _) => model.is_some(),
        };
        Some(if fits { choice } else { Choice { kind: BackendKind::Cpu, fits_gpu: false, ..choice } })
    }

    /// Whether a GPU that an alternative stands beside takes a batch; an invalid batch is refused elsewhere.
    #[cfg(feature = "gpu")]
    fn fits(&self, model: &GpuLstm, batch: &SequenceBatch<'_>) -> bool {
        let runs = batch.num_valid_rows() > 0 && batch.validate_shapes(self.spec()).is_ok();
        !runs || model.plan(&self.job(batch), false).err().is_none_or(|e| !self.can_go_to_host(&e))
    }

    /// A job for a GPU, whose refusal nobody sees where the CPU backend takes over.
    #[cfg(feature = "gpu")]
    fn job<'a>(&self, batch: &'a SequenceBatch<'_>) -> Job<'a> {
        Job { advises: self.inner.alternative.is_none(), ..Job::of(batch) }
    }

    /// Runs one batch and returns what it asks for.
    ///
    /// Timesteps at or past a sequence's length are not read; their output is zero and the final state is the
    /// one after the last valid step. A sequence of length 0, and every sequence of a batch with T = 0, keeps
    /// its initial state.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) if a shape disagrees with the spec or a value is not finite;
    /// [`DeviceLimit`](ErrorKind::DeviceLimit) if the batch does not fit, naming the limit and what would;
    /// [`OutOfMemory`](ErrorKind::OutOfMemory), [`DeviceLost`](ErrorKind::DeviceLost).
    pub async fn run(&self, batch: &SequenceBatch<'_>) -> Result<BatchOutput> {
        self.dispatch(
            batch,
            #[cfg(feature = "gpu")]
            Waiting::Async,
            &|_| (),
        )
        .await
    }

    /// [`Lstm::run`], blocking; on the GPU path it waits on the calling thread, without a hand-over.
    ///
    /// # Errors
    /// As [`Lstm::run`].
    pub fn run_blocking(&self, batch: &SequenceBatch<'_>) -> Result<BatchOutput> {
        self.run_with_progress(batch, &|_| ())
    }

    /// [`Lstm::run_blocking`], calling `progress` with the finished fraction, 0 to 1, as chunks come back.
    ///
    /// # Errors
    /// As [`Lstm::run`].
    pub fn run_with_progress(&self, batch: &SequenceBatch<'_>, progress: &(dyn Fn(f64) + Sync)) -> Result<BatchOutput> {
        pollster::block_on(self.dispatch(
            batch,
            #[cfg(feature = "gpu")]
            Waiting::Blocking,
            progress,
        ))
    }

    /// Records a batch whose arrays lie on the device into an encoder of the application, without submit, poll or
    /// read-back. The arrays of the result hold their values once the encoder's commands have run.
    ///
    /// A recording has its working memory to itself (up to the memory budget each) until its commands are done or
    /// dropped, so several recordings may go into one submit; one may read what an earlier one writes. The bits are those of
    /// [`run`](Self::run).
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) if the model is not on a GPU;
    /// [`InvalidInput`](ErrorKind::InvalidInput) if a shape or a buffer's usage is not as expected;
    /// [`DeviceLimit`](ErrorKind::DeviceLimit) if the batch does not fit, naming the limit and what would;
    /// [`OutOfMemory`](ErrorKind::OutOfMemory), [`DeviceLost`](ErrorKind::DeviceLost). After an error the encoder may
    /// hold a part of the commands; drop it.
    #[cfg(feature = "gpu")]
    pub fn record(&self, encoder: &mut wgpu::CommandEncoder, batch: &GpuBatch) -> Result<GpuOutput> {
        self.inner.engine.need_gpu("Lstm::record")?;
        let result = match self.refusal() {
            Some(e) => Err(e.clone().context("Lstm::record")),
            None => self.gpu().expect("a model on a GPU engine is on it").record_batch(encoder, batch),
        };
        self.inner.engine.tally().request(Request::Recording, batch.num_valid_rows(), result.is_ok());
        result
    }

    /// [`Lstm::record`] into an encoder of its own, submitted at once and not waited for.
    ///
    /// # Errors
    /// As [`Lstm::record`].
    #[cfg(feature = "gpu")]
    pub fn submit(&self, batch: &GpuBatch) -> Result<GpuOutput> {
        let context = self.inner.engine.need_gpu("Lstm::submit")?;
        context.faults.check()?;
        let mut encoder = context.device.create_command_encoder(&Default::default());
        let output = self.record(&mut encoder, batch)?;
        context.guarded_now("submitting", || context.queue.submit([encoder.finish()]))?;
        context.tally.submitted();
        Ok(output)
    }

    /// How a batch would run, in words: strategy, tiles, chunks, bytes, dispatches, and why. For people; the text may
    /// change.
    ///
    /// # Errors
    /// As [`Lstm::run`].
    pub fn explain(&self, batch: &SequenceBatch<'_>) -> Result<String> {
        batch.validate(&self.inner.spec)?;
        let device = &self.inner.engine.inner.report;
        let heading = format!("device: {}: {}\n", device.name, device.reason);
        if batch.num_valid_rows() == 0 {
            return Ok(format!("{heading}no valid row: nothing runs, the final state is the initial state\n"));
        }
        #[cfg(feature = "gpu")]
        let choice = self.choice(batch);
        #[cfg(feature = "gpu")]
        let heading = match choice {
            Some(choice) => format!("{heading}auto: {choice}\n"),
            None => heading,
        };
        #[cfg(feature = "gpu")]
        if let Some(model) = self.gpu().filter(|_| choice.is_none_or(|choice| choice.kind == BackendKind::Gpu)) {
            return Ok(heading + &model.explain(&Job::of(batch))?);
        }
        Ok(format!("{heading}{} rows on the host, whole sequences in memory\n", batch.num_valid_rows()))
    }

    async fn dispatch(
        &self,
        batch: &SequenceBatch<'_>,
        #[cfg(feature = "gpu")] waiting: Waiting,
        progress: &(dyn Fn(f64) + Sync),
    ) -> Result<BatchOutput> {
        let rows = batch.num_valid_rows();
        let span = span!("lstm.run", batch_size = batch.batch_size(), rows = rows);
        let run = self.run_batch(
            batch,
            #[cfg(feature = "gpu")]
            waiting,
            progress,
        );
        let result = run.instrument(span).await;
        self.inner.engine.tally().request(Request::Batch, rows, result.is_ok());
        result
    }

    async fn run_batch(
        &self,
        batch: &SequenceBatch<'_>,
        #[cfg(feature = "gpu")] waiting: Waiting,
        progress: &(dyn Fn(f64) + Sync),
    ) -> Result<BatchOutput> {
        batch.validate_shapes(&self.inner.spec)?;
        if batch.num_valid_rows() == 0 {
            progress(1.0);
            return Ok(empty_output(&self.inner.spec, batch));
        }
        #[cfg(feature = "gpu")]
        if let Some(model) = self.gpu_for(batch) {
            batch.validate_input()?;
            match model.run(self.job(batch), waiting, progress).await {
                // The plan refused it, so nothing has run.
                Err(e) if self.can_go_to_host(&e) => {}
                result => return result,
            }
        }
        let output = self.run_on_host(batch)?;
        progress(1.0);
        Ok(output)
    }

    /// Runs a batch that [`SequenceBatch::validate_shapes`] has accepted on the CPU backend or the reference, whichever
    /// the model has; they check the values of its input.
    pub(crate) fn run_on_host(&self, batch: &SequenceBatch<'_>) -> Result<BatchOutput> {
        // On the host all rows are there anyway.
        let wanted = batch.requested();
        let rows = Outputs { sequence: SequenceOutput::All, ..wanted };
        let whole = if wanted.sequence.is_pooled() { &batch.clone().outputs(rows) } else { batch };
        let mut output = match &self.inner.model {
            #[cfg(feature = "gpu")]
            Model::Gpu(_) | Model::NotOnGpu(_) => match &self.inner.alternative {
                Some(alternative) => alternative.run_on_cpu(whole)?,
                None => bail!(Unsupported, "the model is on a GPU alone"),
            },
            #[cfg(feature = "cpu")]
            Model::Cpu(model) => model.run(whole)?,
            Model::Reference(weights) => reference::run::<f32>(weights, whole)?.into_batch_output(),
        };
        if wanted.sequence.is_pooled() {
            let rows = output.output.take().unwrap_or_default();
            output.pooled = Some(pool_rows(&rows, batch, wanted.sequence, self.inner.spec.output_size()));
        }
        Ok(output)
    }

    /// The model on a GPU, unless the CPU backend is estimated to run this batch faster.
    #[cfg(feature = "gpu")]
    pub(crate) fn gpu_for(&self, batch: &SequenceBatch<'_>) -> Option<&GpuLstm> {
        let choice = self.inner.alternative.as_ref().map(|alternative| alternative.choose(batch));
        self.gpu().filter(|_| choice.is_none_or(|choice| choice.kind == BackendKind::Gpu))
    }

    /// [`gpu_for`](Self::gpu_for), for a caller that goes on when the plan refuses a batch: not one that the CPU backend would
    /// take over then.
    #[cfg(feature = "gpu")]
    pub(crate) fn gpu_for_whole(&self, batch: &SequenceBatch<'_>) -> Option<&GpuLstm> {
        self.gpu_for(batch).filter(|model| self.inner.alternative.is_none() || self.fits(model, batch))
    }

    /// Whether the CPU backend takes over what a plan or the slots of a stream refuse so.
    #[cfg(feature = "gpu")]
    pub(crate) fn can_go_to_host(&self, refusal: &Error) -> bool {
        self.inner.alternative.is_some() && matches!(refusal.kind(), ErrorKind::DeviceLimit | ErrorKind::Unsupported)
    }

    /// Why the model is not on the GPU that the engine has.
    #[cfg(feature = "gpu")]
    pub(crate) fn refusal(&self) -> Option<&Error> {
        match &self.inner.model {
            Model::NotOnGpu(e) => Some(e),
            _ => None,
        }
    }

    /// The model on a GPU, unless the CPU backend is to run pushes to so many slots.
    #[cfg(feature = "gpu")]
    pub(crate) fn gpu_for_stream(&self, num_slots: usize) -> Option<&GpuLstm> {
        let choice = self.inner.alternative.as_ref().map(|alternative| alternative.choose_for_stream(num_slots));
        self.gpu().filter(|_| choice.is_none_or(|choice| choice.kind == BackendKind::Gpu))
    }

    #[cfg(feature = "gpu")]
    pub(crate) fn gpu(&self) -> Option<&GpuLstm> {
        match &self.inner.model {
            Model::Gpu(model) => Some(model),
            #[allow(unreachable_patterns, reason = "which other models exist depends on the features")]
            _ => None,
        }
    }
}

/// The result of a batch without a valid row: zero output, final state = initial state.
fn empty_output(spec: &LstmSpec, batch: &SequenceBatch<'_>) -> BatchOutput {
    let wanted = batch.requested();
    let rows = batch.seq_len() * batch.batch_size();
    let (h_size, c_size) = spec.state_sizes();
    let state = |wanted: bool, given: Option<&[f32]>, size: usize| {
        wanted.then(|| given.map_or_else(|| vec![0.0; size * batch.batch_size()], <[f32]>::to_vec))
    };
    let last = spec.last_layer();
    BatchOutput {
        output: (wanted.sequence == SequenceOutput::All).then(|| vec![0.0; rows * spec.output_size()]),
        last: (wanted.sequence == SequenceOutput::Last).then(|| vec![0.0; batch.batch_size() * spec.output_size()]),
        pooled: wanted.sequence.is_pooled().then(|| vec![0.0; batch.batch_size() * spec.output_size()]),
        h_n: state(wanted.final_state, batch.initial_h(), h_size),
        c_n: state(wanted.final_state, batch.initial_c(), c_size),
        cells: wanted.cells.then(|| vec![0.0; rows * last.num_directions() * last.c_size()]),
    }
}

#[cfg(all(test, feature = "gpu"))]
mod tests {
    use super::*;

    fn adapter(index: usize, name: &str, is_software: bool) -> AdapterReport {
        AdapterReport {
            index,
            name: name.into(),
            backend: "Vulkan".into(),
            device_type: if is_software { "Cpu" } else { "DiscreteGpu" }.into(),
            driver: String::new(),
            driver_info: String::new(),
            vendor: 0,
            device: 0,
            is_software,
            limits: Vec::new(),
            unusable: None,
        }
    }

    fn indices(choice: &str, adapters: &[AdapterReport]) -> Result<Vec<usize>> {
        Ok(candidates(&choice.parse()?, adapters)?.into_iter().map(|(index, _)| index).collect())
    }

    #[test]
    fn auto_never_takes_a_software_adapter() {
        let adapters = [adapter(0, "NVIDIA H200", false), adapter(1, "llvmpipe (LLVM 15)", true)];
        assert_eq!(indices("auto", &adapters).unwrap(), [0]);
        assert_eq!(indices("auto", &adapters[1..]).unwrap(), [0usize; 0]);
        assert_eq!(indices("gpu", &adapters).unwrap(), [0]);
        assert_eq!(indices("gpu", &[adapter(0, "llvmpipe", true)]).unwrap(), [0]);
        assert_eq!(indices("gpu:1", &adapters).unwrap(), [1]);
        assert_eq!(indices("LLVMpipe", &adapters).unwrap(), [1]);
    }

    #[test]
    fn a_typo_lists_what_there_is() {
        let adapters = [adapter(0, "NVIDIA H200", false)];
        for choice in ["gpuu", "gpu:7", "nvidai"] {
            let error = indices(choice, &adapters).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::DeviceNotFound);
            assert!(error.to_string().contains(choice) && error.to_string().contains("gpu:0 NVIDIA H200"), "{error}");
        }
        let error = indices("gpu", &[]).unwrap_err();
        assert!(error.to_string().starts_with("device gpu: there is no adapter"), "{error}");
        assert!(indices("gpu:x", &adapters).unwrap_err().to_string().contains("\"x\""));
        assert!(indices(" ", &adapters).is_err());
    }
}
