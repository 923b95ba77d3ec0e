import { writeFileSync } from 'node:fs';
import { type Encoding, encodingBits, encodingForm } from '../../compiler/ir/encoding.ts';
import type { Graph } from '../../compiler/ir/graph.ts';

interface EncodingRecord {
  readonly name: string;
  readonly dtype: 'INT';
  readonly bw: number;
  readonly enc_type: 'PER_TENSOR' | 'PER_CHANNEL' | 'PER_BLOCK' | 'LPBQ';
  readonly is_sym: boolean;
  readonly scale: readonly number[];
  readonly offset: readonly number[];
  readonly block_size?: number;
  readonly compressed_bw?: number;
  readonly per_block_int_scale?: readonly number[];
}

const FORMS = { tensor: 'PER_TENSOR', channel: 'PER_CHANNEL', block: 'PER_BLOCK', lpbq: 'LPBQ' } as const;

/**
 * AIMET's encodings file, version 1.0.0: a list of activation and one of parameter encodings, scale and offset per entry,
 * offset = -zeroPoint with unsigned integers (AIMET documentation, "Encoding format specification").
 */
export function encodingsJson(graph: Graph): {
  version: string;
  activation_encodings: EncodingRecord[];
  param_encodings: EncodingRecord[];
} {
  const activations: EncodingRecord[] = [];
  const parameters: EncodingRecord[] = [];
  for (const value of graph.values) {
    if (!value.encoding) continue;
    (value.data ? parameters : activations).push(recordOf(value.name, value.encoding));
  }
  return { version: '1.0.0', activation_encodings: activations, param_encodings: parameters };
}

function recordOf(name: string, encoding: Encoding): EncodingRecord {
  const form = encodingForm(encoding);
  const bits = encodingBits(encoding.dtype);
  // AIMET counts integers from 0: a signed integer's zero lies in the middle.
  const middle = encoding.dtype.startsWith('i') ? 2 ** (bits - 1) : 0;
  const zeros = encoding.zeroPoint ?? new Int32Array(1);
  const scale = [...encoding.scale];
  const offset = scale.map((_, i) => -(zeros[zeros.length === 1 ? 0 : i]! + middle));
  const lpbq = form === 'lpbq';
  return {
    name,
    dtype: 'INT',
    bw: lpbq ? bits * 2 : bits,
    enc_type: FORMS[form],
    is_sym: offset.every((value) => value === -(2 ** (bits - 1))),
    scale,
    offset,
    ...(encoding.block === undefined ? {} : { block_size: encoding.block }),
    ...(lpbq ? { compressed_bw: bits, per_block_int_scale: [...encoding.blockScale!] } : {}),
  };
}

export function writeEncodings(graph: Graph, path: string): void {
  writeFileSync(path, `${JSON.stringify(encodingsJson(graph), undefined, 1)}\n`);
}
