import type { Encoding } from '../ir/encoding.ts';
import type { TensorData } from '../ir/tensor.ts';
import { quantizeValues } from './decoder-session.ts';
import type { Runner, Tensors } from './runner.ts';

/** A runner whose integer ports take and give real numbers: the encodings are those of the ports, by name. */
export function withRealPorts(runner: Runner, encodings: ReadonlyMap<string, Encoding>): Runner {
  return {
    engine: runner.engine,
    inputs: runner.inputs.map((port) => (encodings.has(port.name) ? { ...port, dtype: 'f32' } : port)),
    outputs: runner.outputs.map((port) => (encodings.has(port.name) ? { ...port, dtype: 'f32' } : port)),
    run: async (feeds: Tensors, outputs) => {
      const given = Object.entries(feeds).map(([name, tensor]) => [name, encode(tensor, encodings.get(name))] as const);
      const results = await runner.run(Object.fromEntries(given), outputs);
      for (const [name, tensor] of Object.entries(results)) results[name] = decode(tensor, encodings.get(name));
      return results;
    },
    close: () => runner.close(),
  };
}

function encode(tensor: TensorData, encoding: Encoding | undefined): TensorData {
  if (!encoding || tensor.dtype !== 'f32') return tensor;
  return { dtype: encoding.dtype, shape: tensor.shape, data: quantizeValues(tensor.data as Float32Array, encoding) };
}

function decode(tensor: TensorData, encoding: Encoding | undefined): TensorData {
  if (!encoding || tensor.dtype === 'f32') return tensor;
  const zero = encoding.zeroPoint?.[0] ?? 0;
  const scale = encoding.scale[0]!;
  const data = Float32Array.from(tensor.data as Uint16Array, (integer) => (integer - zero) * scale);
  return { dtype: 'f32', shape: tensor.shape, data };
}
