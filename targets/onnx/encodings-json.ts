import { NpucError } from '../../compiler/errors.ts';
import { writeAtomically } from '../../compiler/export/atomic-files.ts';
import { type Encoding, encodingBits, encodingForm } from '../../compiler/ir/encoding.ts';
import type { Graph, Value } from '../../compiler/ir/graph.ts';

/** Versions of AIMET's encodings file; calibration/read-encodings.ts reads both. */
export const ENCODINGS_VERSIONS = ['1.0', '0.6.1'] as const;
export type EncodingsVersion = (typeof ENCODINGS_VERSIONS)[number];

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
 * One encoding in the words of AIMET's encodings file, version 1.0.0: integers count from 0, offset = -zeroPoint (AIMET
 * documentation, "Encoding format specification"). Of LPBQ, `bw` and `offset` are those of the decompressed integers, twice
 * as wide, and block scales lie channel by channel (aimet_common's LPBQEncoding and its test).
 */
function recordOf({ name, dims }: Value, encoding: Encoding): EncodingRecord {
  const form = encodingForm(encoding);
  const lpbq = form === 'lpbq';
  const bits = encodingBits(encoding.dtype);
  const bw = lpbq ? 2 * bits : bits;
  // A signed integer's zero lies in the middle.
  const middle = encoding.dtype.startsWith('i') ? 2 ** (bw - 1) : 0;
  const zeros = encoding.zeroPoint ?? new Int32Array(1);
  const scale = [...encoding.scale];
  const offset = scale.map((_, i) => -(zeros[zeros.length === 1 ? 0 : i]! + middle));
  return {
    name,
    dtype: 'INT',
    bw,
    enc_type: FORMS[form],
    is_sym: offset.every((value) => value === -(2 ** (bw - 1))),
    scale,
    offset,
    ...(encoding.block === undefined ? {} : { block_size: encoding.block }),
    ...(lpbq ? { compressed_bw: bits, per_block_int_scale: blocksByChannel(encoding, dims) } : {}),
  };
}

/** Block scales of a matrix with those of a channel together, whatever its channel axis. */
function blocksByChannel({ blockScale, block, axis, channelAxis }: Encoding, dims: readonly number[]): number[] {
  const scales = [...blockScale!];
  if (channelAxis! < axis!) return scales;
  const blocks = dims[axis!]! / block!;
  const channels = dims[channelAxis!]!;
  return scales.map((_, i) => scales[(i % blocks) * channels + Math.floor(i / blocks)]!);
}

/**
 * The same in the words of version 0.6.1: an entry per channel, with the range that the integers span.
 * @throws QT132 for blocks
 */
function channelsOf({ name, bw, enc_type, is_sym, scale, offset }: EncodingRecord): object[] {
  if (enc_type === 'LPBQ' || enc_type === 'PER_BLOCK') {
    throw new NpucError('QT132', {
      message: `version 0.6.1 of the encodings file has no blocks, and ${name} is in blocks`,
      where: name,
      hint: '--encodings 1.0, or weights without blocks: --block 0',
    });
  }
  return scale.map((step, i) => ({
    bitwidth: bw,
    dtype: 'int',
    is_symmetric: is_sym ? 'True' : 'False',
    max: step * (2 ** bw - 1 + offset[i]!),
    min: step * offset[i]!,
    offset: offset[i]!,
    scale: step,
  }));
}

/**
 * Writes a graph's encodings as AIMET's encodings file: activations and parameters, an entry a line. Version 1.0 lists entries
 * with names; 0.6.1 has the entries by name, each a list of channels, and no blocks.
 * @throws IO002, QT132
 */
export function writeEncodings(graph: Graph, path: string, version: EncodingsVersion = '1.0'): void {
  const encoded = [...graph.values].filter((value) => value.encoding);
  const lists = { activation_encodings: false, param_encodings: true };
  const byName = version === '0.6.1';
  const [open, close] = byName ? '{}' : '[]';
  writeAtomically([path], ([sink]) => {
    sink!.write(Buffer.from(`{\n"version": "${byName ? version : '1.0.0'}"`));
    for (const [list, constant] of Object.entries(lists)) {
      sink!.write(Buffer.from(`,\n"${list}": ${open}`));
      encoded
        .filter((value) => (value.data !== undefined) === constant)
        .forEach((value, i) => {
          const record = recordOf(value, value.encoding!);
          const text = byName
            ? `${JSON.stringify(record.name)}: ${JSON.stringify(channelsOf(record))}`
            : JSON.stringify(record);
          sink!.write(Buffer.from(`${i > 0 ? ',' : ''}\n${text}`));
        });
      sink!.write(Buffer.from(`\n${close}`));
    }
    sink!.write(Buffer.from('\n}\n'));
  });
}
