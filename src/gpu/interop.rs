//! Batches whose arrays lie on the device, and recording into an application's encoder.

use std::borrow::Cow;

use super::device::{Context, new_buffer};
use super::job::{CallerBuffers, CallerRange, Job};
use super::model::GpuLstm;
use super::run::mapped_bytes;
use super::wait::{Waiting, map};
use crate::batch::{Layout, Outputs, RowOrder, SequenceOutput};
use crate::error::{Result, bail};
use crate::plan::Caller;
use crate::spec::LstmSpec;

/// A dense f32 array in a buffer on the device, row-major, slowest axis first. Cheap to clone: clones are the same
/// memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuTensor {
    buffer: wgpu::Buffer,
    offset_bytes: u64,
    shape: Vec<usize>,
}

impl GpuTensor {
    /// The array of this shape that starts `offset_bytes` into `buffer`.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) if the offset is not a multiple of 4, the array does not fit
    /// the buffer, or the buffer lacks `BufferUsages::STORAGE`.
    pub fn new(buffer: &wgpu::Buffer, offset_bytes: u64, shape: &[usize]) -> Result<Self> {
        if !offset_bytes.is_multiple_of(4) {
            bail!(InvalidInput, "offset_bytes: expected a multiple of 4, found {offset_bytes}");
        }
        let bytes = shape.iter().try_fold(4u64, |n, &s| n.checked_mul(s as u64));
        let end = bytes.and_then(|bytes| bytes.checked_add(offset_bytes));
        if end.is_none_or(|end| end > buffer.size()) {
            bail!(
                InvalidInput,
                "buffer: expected {} bytes for shape {shape:?} from byte {offset_bytes} on, found {}",
                end.map_or("too many".to_owned(), |end| end.to_string()),
                buffer.size()
            );
        }
        if !buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
            bail!(InvalidInput, "buffer: expected usage STORAGE, found {:?}", buffer.usage());
        }
        Ok(Self { buffer: buffer.clone(), offset_bytes, shape: shape.to_vec() })
    }

    /// The buffer.
    pub fn buffer(&self) -> &wgpu::Buffer {
        &self.buffer
    }

    /// Where the array starts in its buffer.
    pub fn offset_bytes(&self) -> u64 {
        self.offset_bytes
    }

    /// The shape, slowest axis first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of elements.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of the array.
    pub fn size_bytes(&self) -> u64 {
        4 * self.num_elements() as u64
    }

    pub(super) fn range(&self) -> CallerRange {
        CallerRange { buffer: self.buffer.clone(), offset_bytes: self.offset_bytes, size_bytes: self.size_bytes() }
    }

    fn overlaps(&self, other: &GpuTensor) -> bool {
        self.buffer == other.buffer
            && self.offset_bytes < other.offset_bytes + other.size_bytes()
            && other.offset_bytes < self.offset_bytes + self.size_bytes()
    }
}

/// A batch of B sequences of up to T timesteps whose input lies on the device; otherwise as
/// [`SequenceBatch`](crate::SequenceBatch). Values are not scanned: NaN and infinity give undefined results.
#[derive(Debug, Clone)]
pub struct GpuBatch {
    input: GpuTensor,
    layout: Layout,
    seq_len: usize,
    batch_size: usize,
    lengths: Vec<usize>,
    h_0: Option<GpuTensor>,
    c_0: Option<GpuTensor>,
    outputs: Outputs,
    output: Option<GpuTensor>,
}

impl GpuBatch {
    /// A batch over `input`, [T, B, I] or [B, T, I] as `layout` says. All sequences have length T until
    /// [`lengths`](Self::lengths) says otherwise.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) if `input` has not three axes.
    pub fn new(input: &GpuTensor, layout: Layout) -> Result<Self> {
        let &[first, second, _] = input.shape() else {
            bail!(InvalidInput, "input: expected three axes, found shape {:?}", input.shape());
        };
        let (seq_len, batch_size) = match layout {
            Layout::TimeMajor => (first, second),
            Layout::BatchMajor => (second, first),
        };
        Ok(Self {
            input: input.clone(),
            layout,
            seq_len,
            batch_size,
            lengths: vec![seq_len; batch_size],
            h_0: None,
            c_0: None,
            outputs: Outputs::default(),
            output: None,
        })
    }

    /// Sets each sequence's own length, `[B]`, 0 to T. Input at or past a length is not read.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) if there are not B lengths or one is above T.
    pub fn lengths(mut self, lengths: &[usize]) -> Result<Self> {
        crate::batch::check_lengths(lengths, self.seq_len, self.batch_size)?;
        self.lengths = lengths.to_vec();
        Ok(self)
    }

    /// Sets the initial hidden state, [L·D, B, H or P] layer-major; zero where it is not given.
    #[must_use]
    pub fn h_0(mut self, h_0: &GpuTensor) -> Self {
        self.h_0 = Some(h_0.clone());
        self
    }

    /// Sets the initial cell state, [L·D, B, H] layer-major; zero where it is not given.
    #[must_use]
    pub fn c_0(mut self, c_0: &GpuTensor) -> Self {
        self.c_0 = Some(c_0.clone());
        self
    }

    /// Sets what is computed for the caller.
    #[must_use]
    pub fn outputs(mut self, outputs: Outputs) -> Self {
        self.outputs = outputs;
        self
    }

    /// Where to write all hidden states ([`SequenceOutput::All`]), in place of a new buffer.
    #[must_use]
    pub fn output_into(mut self, output: &GpuTensor) -> Self {
        self.output = Some(output.clone());
        self
    }

    /// The sum of all lengths.
    pub fn num_valid_rows(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// Checks the batch against a model on a device.
    fn validate(&self, model: &GpuLstm) -> Result<()> {
        let spec = &model.spec;
        let input_size = self.input.shape[2];
        if input_size != spec.input_size() {
            bail!(InvalidInput, "input: expected input_size {}, found {input_size}", spec.input_size());
        }
        crate::batch::check_outputs(self.outputs, spec)?;
        let (h_size, c_size) = spec.state_sizes();
        for (name, state, size) in [("h_0", &self.h_0, h_size), ("c_0", &self.c_0, c_size)] {
            if let Some(state) = state
                && state.num_elements() != size * self.batch_size
            {
                bail!(
                    InvalidInput,
                    "{name}: expected {} elements (batch_size {} × {size} over all layers and directions), found {}",
                    size * self.batch_size,
                    self.batch_size,
                    state.num_elements()
                );
            }
        }
        if let Some(output) = &self.output {
            let expected = self.layout.shape(self.seq_len, self.batch_size, spec.output_size());
            if output.shape() != expected {
                bail!(InvalidInput, "output: expected shape {expected:?}, found {:?}", output.shape());
            }
            if self.outputs.sequence != SequenceOutput::All {
                bail!(InvalidInput, "output: a buffer for all hidden states needs Outputs::sequence = All");
            }
            let has_gaps = self.num_valid_rows() < self.seq_len * self.batch_size;
            if has_gaps && !output.buffer.usage().contains(wgpu::BufferUsages::COPY_DST) {
                bail!(
                    InvalidInput,
                    "output: expected usage COPY_DST to clear rows past a length, found {:?}",
                    output.buffer.usage()
                );
            }
            for (name, read) in [("input", Some(&self.input)), ("h_0", self.h_0.as_ref()), ("c_0", self.c_0.as_ref())] {
                if read.is_some_and(|read| read.overlaps(output)) {
                    bail!(InvalidInput, "output: expected memory apart from {name}, found an overlap");
                }
            }
        }
        Ok(())
    }
}

/// What [`Lstm::record`](crate::Lstm::record) leaves on the device once its commands have run: the arrays of
/// [`BatchOutput`](crate::BatchOutput), in the same shapes.
#[derive(Debug, Clone, Default)]
pub struct GpuOutput {
    /// All hidden states of the last layer, [T, B, D·H] or [B, T, D·H].
    pub output: Option<GpuTensor>,
    /// The hidden states at each sequence's last valid timestep, [B, D·H].
    pub last: Option<GpuTensor>,
    /// The mean or maximum over each sequence's valid timesteps, [B, D·H].
    pub pooled: Option<GpuTensor>,
    /// Final hidden states, [L·D, B, H or P]; one axis if layers differ in size. Of a batch without a valid row the
    /// initial state itself, if there is one.
    pub h_n: Option<GpuTensor>,
    /// Final cell states, [L·D, B, H]; as `h_n`.
    pub c_n: Option<GpuTensor>,
    /// All cell states of the last layer, as `output`.
    pub cells: Option<GpuTensor>,
}

/// [L·D, B, size] where all cells have this size, else one axis.
fn state_shape(spec: &LstmSpec, batch_size: usize, total: usize, size: fn(&crate::LayerSpec) -> usize) -> Vec<usize> {
    let sizes: Vec<usize> = spec.cells().map(|(_, layer, _)| size(layer)).collect();
    match sizes.iter().all(|&s| s == sizes[0]) {
        true => vec![sizes.len(), batch_size, sizes[0]],
        false => vec![total * batch_size],
    }
}

impl Context {
    /// Copies an array to a new buffer.
    pub(crate) fn upload(&self, values: &[f32], shape: &[usize]) -> Result<GpuTensor> {
        let elements = shape.iter().try_fold(1usize, |n, &s| n.checked_mul(s));
        if elements != Some(values.len()) {
            bail!(InvalidInput, "values: expected as many elements as shape {shape:?} has, found {}", values.len());
        }
        let tensor = self.new_tensor("tensor", shape)?;
        let write = || self.queue.write_buffer(&tensor.buffer, 0, bytemuck::cast_slice(values));
        self.guarded_now("uploading", write)?;
        Ok(tensor)
    }

    /// A new array of zeros.
    pub(super) fn new_tensor(&self, name: &str, shape: &[usize]) -> Result<GpuTensor> {
        let bytes = shape.iter().try_fold(4u64, |n, &s| n.checked_mul(s as u64));
        let limit = self.limits.buffer_bytes;
        let size = match bytes {
            Some(bytes) if bytes <= limit => bytes.max(16),
            _ => bail!(
                DeviceLimit,
                "max_buffer_size: {name} has {} bytes, the device allows {limit}",
                bytes.map_or("too many".to_owned(), |bytes| bytes.to_string())
            ),
        };
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let label = format!("lstm.{name}");
        let buffer = self.guarded_now("allocating", || new_buffer(&self.device, &label, size, usage))?;
        Ok(GpuTensor { buffer, offset_bytes: 0, shape: shape.to_vec() })
    }

    /// Copies an array back, after everything submitted before.
    pub(crate) async fn read_back(&self, tensor: &GpuTensor, waiting: Waiting) -> Result<Vec<f32>> {
        if tensor.num_elements() == 0 {
            return Ok(Vec::new());
        }
        if !tensor.buffer.usage().contains(wgpu::BufferUsages::COPY_SRC) {
            bail!(InvalidInput, "buffer: expected usage COPY_SRC, found {:?}", tensor.buffer.usage());
        }
        self.faults.check()?;
        let (staging, index, signal) = self
            .guarded("reading back", || {
                let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
                let staging = new_buffer(&self.device, "lstm.staging", tensor.size_bytes(), usage);
                let mut encoder = self.device.create_command_encoder(&Default::default());
                encoder.copy_buffer_to_buffer(&tensor.buffer, tensor.offset_bytes, &staging, 0, tensor.size_bytes());
                let index = self.queue.submit([encoder.finish()]);
                let signal = map([&staging]);
                (staging, index, signal)
            })
            .await?;
        signal.finish(&self.waiter, &index, waiting).await?;
        Ok(bytemuck::pod_collect_to_vec(&mapped_bytes(&staging)?))
    }
}

impl GpuLstm {
    /// Records a batch of the caller; see [`Lstm::record`](crate::Lstm::record).
    pub(crate) fn record_batch(&self, encoder: &mut wgpu::CommandEncoder, batch: &GpuBatch) -> Result<GpuOutput> {
        batch.validate(self)?;
        let context = &self.context;
        let spec = &self.spec;
        let last = spec.last_layer();
        let (h_size, c_size) = spec.state_sizes();
        let wanted = batch.outputs;
        let is_empty = batch.num_valid_rows() == 0;

        let rows = |features| batch.layout.shape(batch.seq_len, batch.batch_size, features).to_vec();
        let h_shape = state_shape(spec, batch.batch_size, h_size, crate::LayerSpec::h_size);
        let c_shape = state_shape(spec, batch.batch_size, c_size, crate::LayerSpec::c_size);
        // New buffers are zero: the results of a batch without a valid row, and initial states that were not given.
        let create =
            |name: &str, wanted: bool, shape: &[usize]| wanted.then(|| context.new_tensor(name, shape)).transpose();
        let state = |name: &str, given: &Option<GpuTensor>, shape: &[usize]| match given {
            Some(given) if is_empty && wanted.final_state => Ok(Some(given.clone())),
            _ => create(name, wanted.final_state, shape),
        };
        let all = wanted.sequence == SequenceOutput::All;
        let result = GpuOutput {
            output: match &batch.output {
                Some(output) => Some(output.clone()),
                None => create("output", all, &rows(spec.output_size()))?,
            },
            last: create("last", wanted.sequence == SequenceOutput::Last, &[batch.batch_size, spec.output_size()])?,
            pooled: create("pooled", wanted.sequence.is_pooled(), &[batch.batch_size, spec.output_size()])?,
            h_n: state("h_n", &batch.h_0, &h_shape)?,
            c_n: state("c_n", &batch.c_0, &c_shape)?,
            cells: create("cells", wanted.cells, &rows(last.num_directions() * last.c_size()))?,
        };
        if is_empty {
            if let Some(output) = &batch.output {
                context.guarded_now("recording", || {
                    encoder.clear_buffer(&output.buffer, output.offset_bytes, Some(output.size_bytes()));
                })?;
            }
            return Ok(result);
        }

        let mut callers = CallerBuffers::default();
        callers.set(Caller::Input, batch.input.range());
        let some_initial = batch.h_0.is_some() || batch.c_0.is_some();
        let initial = |name: &str, given: &Option<GpuTensor>, shape: &[usize]| match given {
            Some(given) => Ok(Some(given.clone())),
            None => create(name, some_initial, shape),
        };
        let (h_0, c_0) = (initial("h_0", &batch.h_0, &h_shape)?, initial("c_0", &batch.c_0, &c_shape)?);
        for (caller, tensor) in [
            (Caller::Output, &result.output),
            (Caller::Cells, &result.cells),
            (Caller::Last, &result.last),
            (Caller::Last, &result.pooled),
            (Caller::H0, &h_0),
            (Caller::C0, &c_0),
            (Caller::HN, &result.h_n),
            (Caller::CN, &result.c_n),
        ] {
            if let Some(tensor) = tensor {
                callers.set(caller, tensor.range());
            }
        }
        let order =
            RowOrder::Layout { layout: batch.layout, seq_len: batch.seq_len, batch_size: batch.batch_size, first: 0 };
        let rows = batch.seq_len * batch.batch_size;
        let job = Job { to_device: true, callers, ..Job::new(Cow::Borrowed(&batch.lengths), order, rows, wanted) };
        self.record(&job, encoder)?;
        Ok(result)
    }
}
