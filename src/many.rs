//! Many batches, one after another: one is uploaded and another read back while a third is computed.

#[cfg(feature = "gpu")]
use std::collections::VecDeque;
use std::fmt;
#[cfg(feature = "gpu")]
use std::ops::Range;

use crate::batch::{BatchOutput, SequenceBatch};
use crate::engine::Lstm;
use crate::error::Result;

#[cfg(feature = "gpu")]
use crate::batch::join_outputs;
#[cfg(feature = "gpu")]
use crate::counters::Request;
#[cfg(feature = "gpu")]
use crate::error::ErrorKind;
#[cfg(feature = "gpu")]
use crate::gpu::{GpuLstm, Job, Run, Waiting};

/// Runs under way at once; each has an equal share of the memory budget.
#[cfg(feature = "gpu")]
const MAX_RUNS: usize = 2;
/// Submits of all runs under way at once.
#[cfg(feature = "gpu")]
const MAX_IN_FLIGHT: usize = 3;

impl Lstm {
    /// Runs batches one after another and returns their outputs in order, as [`run_blocking`](Self::run_blocking) of each
    /// would.
    ///
    /// On a GPU, the upload of a batch, the computation of the one before and the read-back of the one before that
    /// overlap, and a batch that does not fit the memory budget is cut into runs of some of its sequences by itself (with
    /// [`DeviceChoice::Auto`](crate::DeviceChoice::Auto) the CPU backend runs it instead). The
    /// memory in use stays within the budget, whatever the number of batches. None of this moves a bit.
    ///
    /// ```
    /// # use wgpu_lstm::{DeviceChoice, Engine, EngineOptions, Layout, LstmSpec, LstmWeights, SequenceBatch};
    /// # let engine = Engine::open_blocking(EngineOptions::on(DeviceChoice::Reference))?;
    /// # let lstm = engine.load_blocking(&LstmWeights::random(&LstmSpec::stack(3, 8, 2).build()?, 1))?;
    /// let inputs: Vec<Vec<f32>> = vec![vec![0.1; 2 * 5 * 3]; 10];
    /// let batches = inputs.iter().map(|x| SequenceBatch::new(x, [2, 5, 3], Layout::BatchMajor));
    /// for output in lstm.run_many(batches.collect::<Result<Vec<_>, _>>()?) {
    ///     assert_eq!(output?.output.map(|y| y.len()), Some(2 * 5 * 8));
    /// }
    /// # Ok::<(), wgpu_lstm::Error>(())
    /// ```
    pub fn run_many<'a, I>(&'a self, batches: I) -> RunMany<'a, I::IntoIter>
    where
        I: IntoIterator<Item = SequenceBatch<'a>>,
    {
        RunMany {
            lstm: self,
            batches: batches.into_iter(),
            #[cfg(feature = "gpu")]
            on_gpu: OnGpu::default(),
        }
    }
}

/// The outputs of [`Lstm::run_many`], in order. Blocks for each as an iterator; [`next_output`](Self::next_output) waits
/// for it.
///
/// An error is that of one batch; the next ones go on, unless the device is lost.
pub struct RunMany<'a, I> {
    lstm: &'a Lstm,
    batches: I,
    #[cfg(feature = "gpu")]
    on_gpu: OnGpu<'a>,
}

impl<I> fmt::Debug for RunMany<'_, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunMany").field("lstm", &self.lstm).finish_non_exhaustive()
    }
}

impl<'a, I: Iterator<Item = SequenceBatch<'a>>> Iterator for RunMany<'a, I> {
    type Item = Result<BatchOutput>;

    fn next(&mut self) -> Option<Self::Item> {
        pollster::block_on(self.advance(
            #[cfg(feature = "gpu")]
            Waiting::Blocking,
        ))
    }
}

impl<'a, I: Iterator<Item = SequenceBatch<'a>>> RunMany<'a, I> {
    /// The next output; `None` after the last.
    pub async fn next_output(&mut self) -> Option<Result<BatchOutput>> {
        self.advance(
            #[cfg(feature = "gpu")]
            Waiting::Async,
        )
        .await
    }

    async fn advance(&mut self, #[cfg(feature = "gpu")] waiting: Waiting) -> Option<Result<BatchOutput>> {
        #[cfg(feature = "gpu")]
        if let Some(model) = self.lstm.gpu() {
            return self.on_gpu.advance(self.lstm, model, &mut self.batches, waiting).await;
        }
        let batch = self.batches.next()?;
        Some(self.lstm.run_blocking(&batch))
    }
}

/// Batches under way on a GPU, oldest first.
#[cfg(feature = "gpu")]
#[derive(Default)]
struct OnGpu<'a> {
    batches: VecDeque<SequenceBatch<'a>>,
    /// Their parts, in order.
    parts: VecDeque<Part<'a>>,
    /// Sequences of the newest batch whose part is not started, in order.
    waiting: VecDeque<Range<usize>>,
    /// What parts of the oldest batch returned, with their numbers of sequences.
    returned: Vec<(usize, BatchOutput)>,
}

/// Consecutive sequences of a batch.
#[cfg(feature = "gpu")]
struct Part<'a> {
    num_sequences: usize,
    /// Whether it is the last of its batch.
    ends: bool,
    work: Work<'a>,
}

#[cfg(feature = "gpu")]
enum Work<'a> {
    Running(Box<Run<'a>>),
    Done(Result<BatchOutput>),
}

#[cfg(feature = "gpu")]
impl<'a> OnGpu<'a> {
    async fn advance(
        &mut self,
        lstm: &'a Lstm,
        model: &'a GpuLstm,
        batches: &mut impl Iterator<Item = SequenceBatch<'a>>,
        waiting: Waiting,
    ) -> Option<Result<BatchOutput>> {
        loop {
            if matches!(self.parts.front(), Some(Part { work: Work::Done(_), .. })) {
                let rows = self.batches.front().map_or(0, SequenceBatch::num_valid_rows);
                match self.take_oldest(lstm) {
                    Some(result) => {
                        lstm.engine().tally().request(Request::Batch, rows, result.is_ok());
                        return Some(result);
                    }
                    None => continue,
                }
            }
            // First submit what is started, then start another, then wait: so the device always has the next at hand.
            let in_flight: usize = self.runs().map(|run| run.num_in_flight()).sum();
            if in_flight < MAX_IN_FLIGHT && self.submit().await {
                continue;
            }
            if self.runs().count() < MAX_RUNS && self.start(lstm, model, batches).await {
                continue;
            }
            let part = self.parts.front_mut()?;
            if let Work::Running(run) = &mut part.work {
                let finished = run.finish_oldest(waiting).await;
                if let Err(e) = finished {
                    part.work = Work::Done(Err(e));
                } else if run.is_submitted() && run.num_in_flight() == 0 {
                    part.work = Work::Done(Ok(run.take_output()));
                }
            }
        }
    }

    fn runs(&mut self) -> impl Iterator<Item = &mut Run<'a>> {
        self.parts.iter_mut().filter_map(|part| match &mut part.work {
            Work::Running(run) => Some(&mut **run),
            Work::Done(_) => None,
        })
    }

    /// Makes the next submit of the oldest run that has one; whether there was one.
    async fn submit(&mut self) -> bool {
        for part in &mut self.parts {
            if let Work::Running(run) = &mut part.work
                && !run.is_submitted()
            {
                if let Err(e) = run.submit_next().await {
                    part.work = Work::Done(Err(e));
                }
                return true;
            }
        }
        false
    }

    /// Starts the next part; `false` if there is none or it has to wait for others to end.
    async fn start(
        &mut self,
        lstm: &'a Lstm,
        model: &'a GpuLstm,
        batches: &mut impl Iterator<Item = SequenceBatch<'a>>,
    ) -> bool {
        if self.waiting.is_empty() {
            let Some(batch) = batches.next() else { return false };
            let valid = batch.validate(lstm.spec());
            self.waiting.push_back(0..batch.batch_size());
            self.batches.push_back(batch);
            if let Err(e) = valid {
                self.push(Work::Done(Err(e)));
                return true;
            }
            if let Some(batch) = self.batches.back()
                && batch.num_valid_rows() > 0
                && lstm.gpu_for_whole(batch).is_none()
            {
                // The device goes on meanwhile.
                let result = lstm.run_on_host(batch);
                self.push(Work::Done(result));
                return true;
            }
        }
        // It waits until it is started: the future may be dropped before that.
        let (Some(batch), Some(sequences)) = (self.batches.back(), self.waiting.front().cloned()) else { return false };
        let job = |budget_bytes, advises| {
            let job = Job::part(batch, sequences.clone(), lstm.spec());
            Job { budget_bytes: Some(budget_bytes), advises, ..job }
        };
        let budget = model.budget_bytes();
        let work = match job(budget, false).rest(model) {
            Some(output) => Ok(Work::Done(Ok(output))),
            None => {
                Run::start(model, job(budget / MAX_RUNS as u64, false)).await.map(|run| Work::Running(Box::new(run)))
            }
        };
        let work = match work {
            Err(e) if e.kind() == ErrorKind::DeviceLimit => {
                if sequences.len() > 1 {
                    self.waiting.pop_front();
                    let middle = sequences.start + sequences.len() / 2;
                    self.waiting.push_front(middle..sequences.end);
                    self.waiting.push_front(sequences.start..middle);
                    return true;
                }
                // A single sequence may have the whole budget, but alone.
                let run = Run::start(model, job(budget, true));
                if self.parts.iter().any(|part| matches!(part.work, Work::Running(_))) {
                    return false;
                }
                run.await.map(|run| Work::Running(Box::new(run)))
            }
            other => other,
        };
        self.push(work.unwrap_or_else(|e| Work::Done(Err(e))));
        true
    }

    /// The sequences that waited longest are under way, or done.
    fn push(&mut self, work: Work<'a>) {
        let sequences = self.waiting.pop_front().unwrap_or_default();
        self.parts.push_back(Part { num_sequences: sequences.len(), ends: self.waiting.is_empty(), work });
    }

    /// Takes what the oldest part returned; the output of its batch once that is whole.
    fn take_oldest(&mut self, lstm: &Lstm) -> Option<Result<BatchOutput>> {
        let Part { num_sequences, ends, work } = self.parts.pop_front()?;
        let Work::Done(result) = work else { return None };
        let failed = match result {
            Ok(output) => {
                self.returned.push((num_sequences, output));
                None
            }
            Err(e) => Some(e),
        };
        if let Some(e) = failed {
            // The other parts of its batch are of no use.
            let mut ended = ends;
            while !ended {
                match self.parts.pop_front() {
                    Some(part) => ended = part.ends,
                    None => {
                        self.waiting.clear();
                        ended = true;
                    }
                }
            }
            self.batches.pop_front();
            self.returned.clear();
            return Some(Err(e));
        }
        if !ends {
            return None;
        }
        let batch = self.batches.pop_front()?;
        Some(Ok(join_outputs(std::mem::take(&mut self.returned), &batch, lstm.spec())))
    }
}
