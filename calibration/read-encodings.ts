import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { z } from 'zod';
import { NpucError } from '../compiler/errors.ts';
import { roundEven } from '../compiler/ir/encoding.ts';

/** An encoding as a file gives it: integers count from 0, real = scale * (integer + offset). */
export interface GivenEncoding {
  readonly bits: number;
  /** One entry for the whole value, or one per channel. */
  readonly scale: readonly number[];
  readonly offset: readonly number[];
  /** Blocks with an integer scale each, 4-bit weights inside: those of a channel together. */
  readonly blocks?: { readonly size: number; readonly bits: number; readonly scale: readonly number[] };
}

/** Encodings to use in the place of calibrated ones, by the names of the values. */
export interface GivenEncodings {
  readonly path: string;
  /** SHA-256 of the file. */
  readonly digest: string;
  readonly activations: ReadonlyMap<string, GivenEncoding>;
  readonly params: ReadonlyMap<string, GivenEncoding>;
  /** Entries that say that a value stays float: nothing is taken from them. */
  readonly floats: readonly string[];
}

const numbers = z.array(z.number());
const MOST_BITS = 32;

/** An entry of version 1.0.0. */
const record = z.object({
  name: z.string(),
  dtype: z.string(),
  bw: z.number().int().min(1).max(MOST_BITS),
  enc_type: z.enum(['PER_TENSOR', 'PER_CHANNEL', 'PER_BLOCK', 'LPBQ']).default('PER_TENSOR'),
  is_sym: z.boolean().optional(),
  scale: numbers.default([]),
  offset: numbers.optional(),
  block_size: z.number().int().positive().optional(),
  compressed_bw: z.number().int().positive().optional(),
  per_block_int_scale: numbers.optional(),
});
type FileRecord = z.infer<typeof record>;
const current = z.object({
  version: z.string(),
  activation_encodings: z.array(record),
  param_encodings: z.array(record),
});

/** An entry of version 0.6.1 and before: a list with one entry per channel. */
const older = z.object({
  bitwidth: z.number().int().min(1).max(MOST_BITS),
  dtype: z.string().default('int'),
  scale: z.number().optional(),
  offset: z.number().optional(),
  min: z.number().optional(),
  max: z.number().optional(),
});
const olderList = z.record(z.string(), z.array(older).min(1));
const former = z.object({ activation_encodings: olderList, param_encodings: olderList });

/**
 * Reads an encodings file of AIMET: version 1.0.0 (a list of entries with names) or 0.6.1 (entries by name), as the AIMET
 * documentation's "Encoding format specification" describes them.
 * @throws IO001, QT130 when the file is none, or an entry contradicts itself
 */
export function readEncodings(path: string): GivenEncodings {
  const refuse = (message: string, cause?: unknown): never => {
    throw new NpucError('QT130', {
      message: `${path}: ${message}`,
      where: path,
      hint: 'versions 1.0.0 and 0.6.1 of AIMET are read; npuc writes encodings.json beside an ONNX artifact',
      ...(cause === undefined ? {} : { cause }),
    });
  };
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (cause) {
    throw new NpucError('IO001', { message: `cannot read ${path}: ${(cause as Error).message}`, where: path, cause });
  }
  let data: unknown;
  try {
    data = JSON.parse(text);
  } catch (cause) {
    return refuse(`it is not JSON: ${(cause as Error).message}`, cause);
  }
  const floats: string[] = [];
  const read = (entries: readonly FileRecord[], list: string): Map<string, GivenEncoding> => {
    const found = new Map<string, GivenEncoding>();
    for (const entry of entries) {
      if (found.has(entry.name)) refuse(`${list} has ${entry.name} twice`);
      if (entry.dtype.toUpperCase() !== 'INT') floats.push(entry.name);
      else
        found.set(
          entry.name,
          readRecord(entry, (message) => refuse(`${entry.name}: ${message}`)),
        );
    }
    return found;
  };
  const isList = Array.isArray((data as { activation_encodings?: unknown } | null)?.activation_encodings);
  const parsed = (isList ? current : former).safeParse(data);
  if (!parsed.success) {
    const issue = parsed.error.issues[0]!;
    return refuse(`${issue.path.join('.') || 'the whole'}: ${issue.message}`);
  }
  const lists = parsed.data;
  const [activations, params] = (['activation_encodings', 'param_encodings'] as const).map((list) => {
    const entries = lists[list];
    return read(Array.isArray(entries) ? entries : Object.entries(entries).map(modernize), list);
  });
  const digest = createHash('sha256').update(text).digest('hex');
  return { path, digest, activations: activations!, params: params!, floats };
}

/** An entry of the older version in the fields of the newer one. */
function modernize([name, channels]: readonly [string, readonly z.infer<typeof older>[]]): FileRecord {
  const { bitwidth: bw, dtype } = channels[0]!;
  const steps = 2 ** bw - 1;
  const scale = channels.map((channel) => channel.scale ?? ((channel.max ?? 0) - (channel.min ?? 0)) / steps);
  const offset = channels.map((channel, i) => channel.offset ?? roundEven((channel.min ?? 0) / scale[i]!));
  const same = channels.every((channel) => channel.bitwidth === bw && channel.dtype === dtype);
  // Lengths that differ are refused where the entry is read.
  return {
    name,
    dtype,
    bw: same ? bw : Number.NaN,
    enc_type: channels.length === 1 ? 'PER_TENSOR' : 'PER_CHANNEL',
    scale,
    offset,
  };
}

function readRecord(entry: FileRecord, refuse: (message: string) => never): GivenEncoding {
  const { bw, enc_type: form, scale } = entry;
  if (!Number.isFinite(bw)) refuse('its channels have several widths');
  if (scale.length === 0) refuse('it has no scale');
  if (form === 'PER_TENSOR' && scale.length !== 1) refuse(`PER_TENSOR with ${scale.length} scales`);
  const middle = -(2 ** (bw - 1));
  const offset = entry.offset ?? scale.map(() => middle);
  if (offset.length !== scale.length && offset.length !== 1)
    refuse(`${scale.length} scales and ${offset.length} offsets`);
  if (!scale.every((value) => value > 0 && Number.isFinite(value))) refuse('a scale is not a positive number');
  if (!offset.every((value) => Number.isInteger(value) && value <= 0 && value > -(2 ** bw)))
    refuse(`an offset is not between ${1 - 2 ** bw} and 0`);
  const all = offset.length === scale.length ? offset : scale.map(() => offset[0]!);
  if (form === 'PER_BLOCK') refuse('blocks with a float scale each run in half floats on an NPU: use LPBQ');
  if (form !== 'LPBQ') return { bits: bw, scale, offset: all };
  const { block_size: size, compressed_bw: bits, per_block_int_scale: blocks } = entry;
  if (size === undefined || bits === undefined || blocks === undefined)
    return refuse('LPBQ needs block_size, compressed_bw and per_block_int_scale');
  if (blocks.length % scale.length !== 0) refuse(`${blocks.length} blocks for ${scale.length} channels`);
  if (!blocks.every((value) => Number.isInteger(value) && value >= 1 && value <= 2 ** bits))
    refuse('a block scale is not a small whole number');
  return { bits: bw, scale, offset: all, blocks: { size, bits, scale: blocks } };
}
