import { FileSource } from '../../compiler/ir/tensor.ts';
import type { LitertModel } from '../../compiler/runtime/litert.ts';
import { type NativePorts, openNativeLitert } from '../../compiler/runtime/litert-native.ts';
import type { PortInfo } from '../../compiler/runtime/runner.ts';
import type { OpenOptions } from '../target.ts';
import type { TflitePort } from './model.ts';
import { readTflite } from './read.ts';
import { dtypeOf } from './subgraph-builder.ts';

/** Opens a TFLite file in a native LiteRT. @throws RT110, RT202; IO003 when the file is none */
export function openNative(
  path: string,
  { library, engine }: NonNullable<OpenOptions['litert']>,
): Promise<LitertModel> {
  return openNativeLitert(library, path, readPorts(path), engine);
}

/** The signatures of a file and what they take and give. */
function readPorts(path: string): NativePorts[] {
  const file = new FileSource(path);
  try {
    const { signatures, subgraphs } = readTflite(file, path);
    return signatures.map(({ key, subgraph, inputs, outputs }) => {
      const ports = (list: readonly TflitePort[]): PortInfo[] =>
        list.map(({ name, tensor }) => {
          const { type, shape } = subgraphs[subgraph]!.tensors[tensor]!;
          return { name, dtype: dtypeOf(type, name), shape: Array.from(shape) };
        });
      return { key, inputs: ports(inputs), outputs: ports(outputs) };
    });
  } finally {
    file.close();
  }
}
