//! Burn's nn::Lstm on wgpu.

use burn::module::Param;
use burn::nn::{Linear, Lstm, LstmConfig, LstmState};
use burn::tensor::{Device, Tensor, TensorData};

use crate::case::Case;
use crate::{Result, Worker};

pub struct Burn {
    device: Device,
    lstm: Lstm,
    case_x: Vec<f32>,
    shape: [usize; 3],
    state: LstmState<2>,
    carried: bool,
}

impl Burn {
    pub fn new(case: &Case) -> Result<(Self, String)> {
        if case.layers > 1 || case.directions > 1 || case.is_ragged() {
            return Err("Burn's Lstm is one forward layer, without lengths".into());
        }
        let (device, setup) = Device::wgpu_options().init_with_setup()?;
        let info = setup.adapter.get_info();
        let name = format!("0.22 on {} ({:?})", info.name, info.backend);
        let bytes = std::fs::read(case.folder.join("weights.safetensors"))?;
        let file = safetensors::SafeTensors::deserialize(&bytes)?;
        let values = |name: &str| -> Result<Vec<f32>> {
            let data = file.tensor(name)?;
            Ok(data.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
        };
        let hidden = case.hidden;
        // The rows of a gate, transposed: Burn has [in, out].
        let linear = |which: &str, gate: usize, width: usize| -> Result<Linear> {
            let rows = &values(&format!("weight_{which}_l0"))?[gate * hidden * width..][..hidden * width];
            let weight: Vec<f32> = (0..width * hidden).map(|i| rows[i % hidden * width + i / hidden]).collect();
            let bias = values(&format!("bias_{which}_l0"))?[gate * hidden..][..hidden].to_vec();
            Ok(Linear {
                weight: Param::from_tensor(Tensor::from_data(TensorData::new(weight, [width, hidden]), &device)),
                bias: Some(Param::from_tensor(Tensor::from_data(TensorData::new(bias, [hidden]), &device))),
            })
        };
        let mut lstm = LstmConfig::new(case.input, hidden, true).with_batch_first(false).init(&device);
        {
            let forget = lstm.forget_gate.as_mut().ok_or("no forget gate")?;
            let gates = [&mut lstm.input_gate, forget, &mut lstm.cell_gate, &mut lstm.output_gate];
            for (gate, controller) in gates.into_iter().enumerate() {
                controller.input_transform = linear("ih", gate, case.input)?;
                controller.hidden_transform = linear("hh", gate, hidden)?;
            }
        }
        let zeros = || Tensor::<2>::zeros([case.batch, hidden], &device);
        let state = LstmState::new(zeros(), zeros());
        let shape = [case.len, case.batch, case.input];
        Ok((Self { lstm, case_x: case.x.clone(), shape, state, carried: case.carried, device }, name))
    }
}

impl Worker for Burn {
    fn run(&mut self) -> Result<Vec<f32>> {
        let x = Tensor::<3>::from_data(TensorData::new(self.case_x.clone(), self.shape), &self.device);
        let (y, state) = self.lstm.forward(x, Some(self.state.clone()));
        let y = y.into_data().try_to_vec()?;
        if self.carried {
            self.state = state;
        } else {
            let _: (Vec<f32>, Vec<f32>) = (state.hidden.into_data().try_to_vec()?, state.cell.into_data().try_to_vec()?);
        }
        Ok(y)
    }
}
