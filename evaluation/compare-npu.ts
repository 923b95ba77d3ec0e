import { dirname } from 'node:path';
import { NpucError } from '../compiler/errors.ts';
import { FileSource, type TensorData, toFloats } from '../compiler/ir/tensor.ts';
import { wasmKernels } from '../compiler/kernels/index.ts';
import { createDifferenceSums, type DifferenceSums, signalToNoise } from '../compiler/kernels/kernels.ts';
import { makeTemporaryFolder } from '../compiler/runtime/engine.ts';
import { loadLitert } from '../compiler/runtime/litert.ts';
import { runDispatched } from '../compiler/runtime/litert-dispatch.ts';
import { NativeHost } from '../compiler/runtime/ort-native.ts';
import type { Tensors } from '../compiler/runtime/runner.ts';
import { requireToolchain } from '../targets/qnn/toolchain.ts';
import type { CompiledNpu, ManifestNpu } from '../targets/tflite/npu/compile-npu.ts';
import { openPartition } from '../targets/tflite/npu/open-partition.ts';
import { tapModel } from '../targets/tflite/npu/tap-model.ts';
import { readTflite } from '../targets/tflite/read.ts';
import { TensorType, type TensorTypeCode } from '../targets/tflite/schema-enums.ts';
import { encodeTflite } from '../targets/tflite/write.ts';

/** How one output of the byte code is from LiteRT's on the same inputs. */
export interface NpuOutput {
  readonly name: string;
  /** dB over all runs; infinite where every element is the same. */
  readonly sqnr: number;
  /** The largest difference in integers; absent for floats. */
  readonly steps?: number;
}

/** One signature of a compiled file on the vendor's engine, beside LiteRT. */
export interface NpuRun {
  readonly signature: string;
  /** Inputs that it was run on. */
  readonly runs: number;
  readonly outputs: readonly NpuOutput[];
  /** That of the worst output. */
  readonly sqnr: number;
  readonly worst: string;
}

/** A compiled file in a report: what the plugin took, and how exactly its engine computes that. */
export interface NpuReport extends ManifestNpu {
  readonly bytes: number;
  /** Absent where nothing was run. */
  readonly engine?: string;
  readonly runs: readonly NpuRun[];
  readonly notes: readonly string[];
}

/** Sources above this are not run beside: LiteRT's WebAssembly holds 2 GiB. */
const LARGEST_SOURCE = 2 ** 30;

/**
 * Runs what a vendor's plugin compiled and LiteRT on the same inputs. Each partition of a file for Qualcomm is executed on
 * the HTP simulator from LiteRT's own values in front of it, so that no error is carried from one to the next; a file for
 * Intel is executed whole, through LiteRT and OpenVINO.
 * @param feeds inputs of each signature by port name, integers where the ports are integers; other signatures are not run
 * @returns undefined for what cannot be executed here
 */
export async function compareNpu(
  compiled: CompiledNpu,
  feeds: ReadonlyMap<string, readonly Tensors[]>,
): Promise<{ readonly engine: string; readonly runs: readonly NpuRun[] } | undefined> {
  const { vendor } = compiled.manifest;
  if (compiled.path === undefined || (vendor !== 'qualcomm' && vendor !== 'openvino')) return undefined;
  const source = new FileSource(compiled.source);
  try {
    if (source.size > LARGEST_SOURCE) return undefined;
    const references = new References(readTflite(source, compiled.source));
    return vendor === 'qualcomm'
      ? await simulate(compiled, compiled.path, references, feeds)
      : await dispatch(compiled, compiled.path, references, feeds);
  } finally {
    source.close();
  }
}

/** LiteRT's values of the file that was compiled. */
class References {
  readonly #model: ReturnType<typeof readTflite>;

  constructor(model: ReturnType<typeof readTflite>) {
    this.#model = model;
  }

  /** Values by the names of tensors, the inputs among them. */
  async run(signature: string, feeds: readonly Tensors[], tensors: readonly string[]): Promise<Tensors[]> {
    const { subgraph, inputs } = this.#model.signatures.find(({ key }) => key === signature)!;
    const names = inputs.map(
      (port) => [port.name, this.#model.subgraphs[subgraph]!.tensors[port.tensor]!.name] as const,
    );
    const tapped = await loadLitert(encodeTflite(tapModel(this.#model, signature, [...new Set(tensors)])));
    try {
      const results: Tensors[] = [];
      for (const feed of feeds) {
        const given = Object.fromEntries(names.map(([port, tensor]) => [tensor, feed[port]!]));
        results.push({ ...given, ...(await tapped.signatures[signature]!.run(given)) });
      }
      return results;
    } finally {
      tapped.dispose();
    }
  }

  /** The tensors behind a signature's ports. */
  ports(signature: string, side: 'inputs' | 'outputs'): { name: string; tensor: string }[] {
    const found = this.#model.signatures.find(({ key }) => key === signature)!;
    const { tensors } = this.#model.subgraphs[found.subgraph]!;
    return found[side].map(({ name, tensor }) => ({ name, tensor: tensors[tensor]!.name }));
  }
}

async function simulate(
  { dispatched }: CompiledNpu,
  path: string,
  references: References,
  feeds: ReadonlyMap<string, readonly Tensors[]>,
): Promise<{ engine: string; runs: NpuRun[] }> {
  const folder = makeTemporaryFolder();
  const host = await NativeHost.start(requireToolchain('qnn'));
  try {
    const runs: NpuRun[] = [];
    let engine = '';
    for (const { name, partitions } of dispatched) {
      const given = feeds.get(name);
      if (!given || partitions.length === 0) continue;
      const tensors = partitions.flatMap(({ inputs, outputs }) => [...inputs, ...outputs]);
      const references_ = await references.run(name, given, tensors);
      const comparison = new Comparison();
      for (const partition of partitions) {
        const { session, portOf } = await openPartition(host, path, partition, folder.path);
        engine = session.engine;
        try {
          for (const values of references_) {
            const fed = partition.inputs.map((tensor) => [portOf.get(tensor)!.name, values[tensor]!] as const);
            const results = await session.run(Object.fromEntries(fed));
            for (const tensor of partition.outputs) {
              const port = portOf.get(tensor)!;
              comparison.add(tensor, values[tensor]!, results[port.name]!, port.zeroPoint ?? 0);
            }
          }
        } finally {
          await session.close();
        }
      }
      runs.push(comparison.finish(name, given.length));
    }
    return { engine, runs };
  } finally {
    await host.close();
    folder.release();
  }
}

async function dispatch(
  { dispatched }: CompiledNpu,
  path: string,
  references: References,
  feeds: ReadonlyMap<string, readonly Tensors[]>,
): Promise<{ engine: string; runs: NpuRun[] }> {
  const toolchain = requireToolchain('litert');
  const file = new FileSource(path);
  try {
    const model = readTflite(file, path);
    const runs: NpuRun[] = [];
    for (const { name } of dispatched) {
      const given = feeds.get(name);
      if (!given) continue;
      const index = model.signatures.findIndex(({ key }) => key === name);
      const { subgraph, inputs, outputs } = model.signatures[index]!;
      const describe = ({ name: port, tensor }: { name: string; tensor: number }) => {
        const { type, shape } = model.subgraphs[subgraph]!.tensors[tensor]!;
        return { name: port, dtype: dtypeOf(type, port), shape };
      };
      const results = await runDispatched(
        {
          library: toolchain.runtimeLibrary,
          dispatch: `${toolchain.vendorFolder}/intel_openvino/dispatch`,
          search: `${toolchain.openvinoFolder}:${dirname(toolchain.runtimeLibrary)}`,
          model: path,
          signature: index,
          inputs: inputs.map(describe),
          outputs: outputs.map(describe),
        },
        given,
      );
      const ports = references.ports(name, 'outputs');
      const expected = await references.run(
        name,
        given,
        ports.map(({ tensor }) => tensor),
      );
      const comparison = new Comparison();
      results.forEach((result, n) => {
        for (const { name: port, tensor } of ports) comparison.add(tensor, expected[n]![tensor]!, result[port]!, 0);
      });
      runs.push(comparison.finish(name, given.length));
    }
    return { engine: `openvino ${toolchain.versions.openvino} cpu through litert ${toolchain.versions.litert}`, runs };
  } finally {
    file.close();
  }
}

const DTYPES = {
  [TensorType.FLOAT32]: 'f32',
  [TensorType.INT32]: 'i32',
  [TensorType.INT16]: 'i16',
  [TensorType.INT8]: 'i8',
  [TensorType.BOOL]: 'bool',
  [TensorType.INT64]: 'i64',
} as const;

function dtypeOf(type: TensorTypeCode, where: string): (typeof DTYPES)[keyof typeof DTYPES] {
  const dtype = DTYPES[type as keyof typeof DTYPES];
  if (dtype) return dtype;
  throw new NpucError('TF202', { message: `a port of the TFLite type ${type} cannot be fed`, where });
}

/** Sums of differences by output. */
class Comparison {
  readonly #sums: Map<string, { readonly sums: DifferenceSums; isInteger: boolean }> = new Map();

  add(name: string, expected: TensorData, found: TensorData, zeroPoint: number): void {
    let entry = this.#sums.get(name);
    if (!entry) {
      entry = { sums: createDifferenceSums(), isInteger: expected.dtype !== 'f32' };
      this.#sums.set(name, entry);
    }
    const real = (tensor: TensorData): Float32Array => {
      const floats = toFloats(tensor);
      return zeroPoint === 0 ? floats : floats.map((element) => element - zeroPoint);
    };
    wasmKernels.accumulateDifference(real(expected), real(found), entry.sums);
  }

  finish(signature: string, runs: number): NpuRun {
    const outputs = [...this.#sums].map(([name, { sums, isInteger }]) => ({
      name,
      sqnr: signalToNoise(sums),
      ...(isInteger ? { steps: sums.maxDifference } : {}),
    }));
    const worst = outputs.reduce((a, b) => (b.sqnr < a.sqnr ? b : a));
    return { signature, runs, outputs, sqnr: worst.sqnr, worst: worst.name };
  }
}
