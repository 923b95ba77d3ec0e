import { join } from 'node:path';
import { NpucError } from '../../compiler/errors.ts';
import { writeOnnx } from '../../compiler/export/onnx.ts';
import { parseModule } from '../../compiler/ir/text.ts';
import { seededUniform } from '../../compiler/ir/text-data.ts';
import { makeTemporaryFolder } from '../../compiler/runtime/engine.ts';
import { NativeHost, type NativeToolchain } from '../../compiler/runtime/ort-native.ts';
import { findSoc } from '../socs.ts';
import { compileContext } from './compile-context.ts';

/** What the self-test measured. */
export interface SelfTest {
  /** The simulator against ONNX Runtime's CPU kernels on the same quantized MatMul; above 60 is right. */
  readonly decibels: number;
  readonly seconds: number;
}

const SHAPE = [1, 8, 64];

/** A 16-bit MatMul with 8-bit weights: the sums of 64 products of numbers in [-1, 1] and [-0.1, 0.1] stay within 4. */
const MATMUL = `npuir 1
opset 21

graph @self_test
  in %x : f32[${SHAPE}] q(u16, scale 3.0517578125e-5, zero 32768)
  %w : f32[64,64] q(i8, scale 0.0008) = const rand(7, uniform -0.1 0.1)
  %y : f32[${SHAPE}] q(u16, scale 1.220703125e-4, zero 32768) = MatMul(%x, %w)
  out %y
`;

/**
 * Compiles one small MatMul to a context binary, runs it on the simulator and compares: shows that the toolchain works on
 * this machine, in about a second.
 * @throws what the toolchain throws, QN016 when the simulator computes something else
 */
export async function testToolchain(toolchain: NativeToolchain): Promise<SelfTest> {
  const started = performance.now();
  const folder = makeTemporaryFolder();
  try {
    const path = join(folder.path, 'self_test.onnx');
    writeOnnx(parseModule(MATMUL), path);
    const { files } = await compileContext(toolchain, [{ name: 'self_test', path }], {
      soc: findSoc('SM8750'),
      share: false,
      outputFolder: join(folder.path, 'out'),
    });
    const host = await NativeHost.start(toolchain);
    try {
      const next = seededUniform(3);
      const data = Float32Array.from({ length: SHAPE.reduce((a, b) => a * b) }, () => next() * 2 - 1);
      const feeds = { x: { dtype: 'f32', shape: SHAPE, data } } as const;
      const cpu = await host.openSession(path, { provider: 'cpu' });
      const simulator = await host.openSession(files[0]!.onnx, { provider: 'qnn' });
      const [wanted, found] = [await cpu.run(feeds), await simulator.run(feeds)].map(
        ({ y }) => y!.data as Float32Array,
      );
      const decibels = compare(wanted!, found!);
      // Anything but a number above this is another computation.
      if (!(decibels > 50)) {
        throw new NpucError('QN016', {
          message: `a MatMul on the simulator is ${decibels.toFixed(1)} dB from ONNX Runtime's, 60 and more is right`,
          hint: 'install the toolchain again',
        });
      }
      return { decibels, seconds: (performance.now() - started) / 1000 };
    } finally {
      await host.close();
    }
  } finally {
    folder.release();
  }
}

/** Signal to error in dB; infinite where they are equal, minus infinity where nothing came out. */
function compare(wanted: Float32Array, found: Float32Array): number {
  const signal = wanted.reduce((sum, value) => sum + value * value, 0);
  const error = wanted.reduce((sum, value, i) => sum + (value - found[i]!) ** 2, 0);
  return 10 * Math.log10(signal / error);
}
