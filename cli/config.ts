import { existsSync, readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { parse } from 'yaml';
import { z } from 'zod';
import { EFFORTS } from '../calibration/effort.ts';
import { OUTLIERS, ROTATIONS, ROUNDINGS } from '../calibration/recipe.ts';
import { NpucError } from '../compiler/errors.ts';
import { nearestWord } from '../compiler/nearest.ts';
import { ENCODINGS_VERSIONS } from '../targets/onnx/encodings-json.ts';
import { PROFILES } from '../targets/target.ts';

const list = <T extends z.ZodType>(item: T, least = 1) =>
  z.preprocess(
    (value) =>
      value === undefined
        ? value
        : [value]
            .flat()
            .flatMap((each) => (typeof each === 'string' ? each.split(',').map((part) => part.trim()) : [each])),
    z.array(item).min(least),
  );

/** Flags arrive as text. */
const number = <T extends z.ZodType>(schema: T) =>
  z.preprocess((value) => (typeof value === 'string' && value.trim() !== '' ? Number(value) : value), schema);
const count = number(z.number().int().positive());
const text = z.string().min(1);

const UNITS: Readonly<Record<string, number>> = {
  '': 1,
  K: 1e3,
  M: 1e6,
  G: 1e9,
  KI: 2 ** 10,
  MI: 2 ** 20,
  GI: 2 ** 30,
};

/** An override such as down_proj=w8, or =w4:32 (blocks), or =a16; what is none is left for the schema to refuse. */
function readOverride(override: unknown): unknown {
  const parts = typeof override === 'string' ? /^(.+)=(?:w([48])(?::(\d+))?|a(8|16))$/.exec(override) : null;
  if (!parts) return override;
  const [, match, bits, block, activation] = parts;
  if (activation !== undefined) return { match, activation: Number(activation) };
  return { match, weight: { bits: Number(bits), ...(block === undefined ? {} : { block: Number(block) }) } };
}

/** A budget such as weights<=90MB; what is none is left for the schema to refuse. */
function readBudget(budget: unknown): unknown {
  const parts = typeof budget === 'string' ? /^\s*weights\s*<=\s*(.+)$/.exec(budget) : null;
  return parts ? { bytes: readBytes(parts[1]) } : budget;
}

/** Bytes of a size with a unit; what is none is left for the schema to refuse. */
function readBytes(size: unknown): unknown {
  const parts = typeof size === 'string' ? /^\s*(\d+(?:\.\d+)?)\s*([KMG]I?|)B?\s*$/i.exec(size) : null;
  return parts ? Math.floor(Number(parts[1]) * UNITS[parts[2]!.toUpperCase()]!) : size;
}

const COUNT = 'a whole number above 0';
const TEXT = 'a text that is not empty';

/** Everything that `npuc compile` can be told, as file or as flags. The descriptions say what an error asks for. */
export const compileConfig = z.strictObject({
  source: text.optional().describe(TEXT),
  soc: text.default('SM8750').describe(TEXT),
  scheme: text.default('w4a16').describe(TEXT),
  tokens: list(count).default([128]).describe(`${COUNT}, or several`),
  cache: list(count).default([1024]).describe(`${COUNT}, or several`),
  target: list(z.enum(['onnx', 'qnn', 'tflite', 'hf']))
    .optional()
    .describe('one or several of onnx, qnn, tflite, hf'),
  out: text.default('build').describe(TEXT),
  kv: number(z.union([z.literal(8), z.literal(16)]))
    .default(8)
    .describe('8 or 16'),
  block: number(z.number().int().nonnegative()).optional().describe('0, 16, 32, 64, 128 or 256'),
  range: z.enum(['min-max', 'percentile', 'histogram-mse']).optional().describe('min-max, percentile or histogram-mse'),
  rounding: z.enum(ROUNDINGS).optional().describe('nearest or gptq'),
  embedding: z.enum(['in-graph', 'lut-f16', 'lut-u8']).default('in-graph').describe('in-graph, lut-f16 or lut-u8'),
  rotation: z.enum(ROTATIONS).optional().describe('auto, none or hadamard'),
  outliers: z.enum(OUTLIERS).optional().describe('auto, none or apart'),
  io: z.enum(['float', 'quantized']).default('float').describe('float or quantized'),
  profile: z.enum(PROFILES).default('npu').describe(PROFILES.join(' or ')),
  calibrate: text.optional().describe(TEXT),
  calibrationWindows: count.optional().describe(COUNT),
  weightBudget: z
    .preprocess(readBudget, z.strictObject({ bytes: z.number().int().positive() }))
    .optional()
    .describe('a limit such as "weights<=90MB"'),
  effort: z.enum(EFFORTS).default('default').describe('fast, default or best'),
  evaluate: text.optional().describe(TEXT),
  // A bare 1.0 in a file is a number.
  encodings: z
    .preprocess((value) => (value === 1 ? '1.0' : value), z.enum(ENCODINGS_VERSIONS))
    .default('1.0')
    .describe(ENCODINGS_VERSIONS.join(' or ')),
  encodingsIn: text.optional().describe(TEXT),
  npu: list(text, 0).default([]).describe('a vendor, or vendor:SoC, or several'),
  npuClaims: z.boolean().default(false).describe('true or false'),
  npuSdk: text.optional().describe('a folder'),
  dlc: z.boolean().default(false).describe('true or false'),
  toolchain: text.optional().describe('qnn@ and a version'),
  evalTokens: count.default(2048).describe(COUNT),
  prompt: z.string().default('The capital of France is').describe('a text'),
  bind: z.array(z.string()).default([]).describe('a list of name=number'),
  threads: count.default(2).describe(COUNT),
  requantize: z.boolean().default(false).describe('true or false'),
  allowExtrapolation: z.boolean().default(false).describe('true or false'),
  split: z
    .union([z.literal('auto'), count])
    .default('auto')
    .describe(`auto, or ${COUNT}`),
  splitEmbedding: z.boolean().default(false).describe('true or false'),
  splitHead: z.boolean().default(false).describe('true or false'),
  maxMemory: z
    .preprocess(readBytes, z.number().int().positive())
    .optional()
    .describe('a size such as 12GiB, 8GB or 500MB'),
  overrides: z
    .array(
      z.preprocess(
        readOverride,
        z.strictObject({
          match: text,
          weight: z
            .strictObject({
              bits: z.union([z.literal(4), z.literal(8)]),
              block: z
                .union([z.literal(0), z.literal(16), z.literal(32), z.literal(64), z.literal(128), z.literal(256)])
                .default(0),
            })
            .optional(),
          activation: z.union([z.literal(8), z.literal(16)]).optional(),
        }),
      ),
    )
    .default([])
    .describe(
      'regex=w4, =w8, =w4:64, =a8 or =a16; in a file also { match, weight: { bits: 4 or 8, block: 0, 16, 32 or 64 }, activation: 8 or 16 }',
    ),
});

export type CompileConfig = z.infer<typeof compileConfig>;
/** As it is written: everything optional. */
export type CompileConfigInput = Partial<CompileConfig>;

/** The shapes of MediaTek's public flow, 128t512c and 1t512c: there the cache is what lies before a graph's own tokens. */
const MEDIATEK: CompileConfigInput = { tokens: [128], cache: [512] };

/** Keys that are lists: as flags their repetitions add up. */
const LISTS: ReadonlySet<string> = new Set(['npu', 'bind', 'tokens', 'cache', 'target', 'overrides']);

const NAMES = ['npuc.config.yaml', 'npuc.config.yml', 'npuc.config.json', 'npuc.config.mjs'];

/** A configuration as it was read, and the file that it was read from. */
export interface ConfigFile {
  readonly path?: string;
  readonly config: CompileConfigInput;
}

/**
 * Reads a configuration file: the given one, or the first of the known names in the working folder.
 * @throws CL002 when it cannot be read, or holds anything but keys and values
 */
export async function readConfig(path: string | undefined): Promise<ConfigFile> {
  const file = path ?? NAMES.find((name) => existsSync(name));
  if (file === undefined) return { config: {} };
  let config: unknown;
  try {
    config = file.endsWith('.mjs')
      ? ((await import(pathToFileURL(resolve(file)).href)) as { default?: unknown }).default
      : (parse(readFileSync(file, 'utf8')) ?? {});
  } catch (cause) {
    // The parser's message goes on with the source and a caret.
    const [reason] = (cause as Error).message.split(/:?\n/);
    throw new NpucError('CL002', { message: `cannot read ${file}: ${reason}`, where: file, cause });
  }
  if (typeof config !== 'object' || config === null || Array.isArray(config)) {
    throw new NpucError('CL002', {
      message: `${file} does not hold keys and values`,
      where: file,
      hint: file.endsWith('.mjs') ? 'export default { source: ... }' : 'lines such as "scheme: w8a16"',
    });
  }
  return { path: file, config };
}

/**
 * Flags over the file over the defaults.
 * @param path the file, for errors
 * @throws CL002 naming the key or flag that is wrong, and what it takes
 */
export function mergeConfig(
  file: CompileConfigInput,
  flags: Readonly<Record<string, unknown>> | object,
  path?: string,
): CompileConfig {
  const known = Object.keys(compileConfig.shape);
  // A flag given twice arrives as an array: the last one counts, as in most tools.
  const given = Object.fromEntries(
    Object.entries(flags)
      .filter(([key, value]) => known.includes(key) && value !== undefined)
      .map(([key, value]) => [key, Array.isArray(value) && !LISTS.has(key) ? value.at(-1) : value]),
  );
  const { profile } = { ...file, ...given } as CompileConfigInput;
  const parsed = compileConfig.safeParse({ ...(profile === 'mediatek' ? MEDIATEK : {}), ...file, ...given });
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0]!;
  if (issue.code === 'unrecognized_keys' && issue.path.length === 0) {
    const near = nearestWord(issue.keys[0]!, known);
    throw new NpucError('CL002', {
      message: `there is no key ${issue.keys[0]}`,
      ...(path === undefined ? {} : { where: path }),
      hint: near ? `did you mean ${near}?` : `the keys are ${known.join(', ')}`,
    });
  }
  const key = String(issue.path[0]) as keyof typeof compileConfig.shape;
  const takes = compileConfig.shape[key].description ?? issue.message;
  if (key in given) {
    const flag = `--${key.replaceAll(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;
    throw new NpucError('CL002', { message: `${flag} takes ${takes}`, hint: 'npuc compile --help lists the options' });
  }
  throw new NpucError('CL002', {
    message: `${issue.path.join('.')} takes ${takes}`,
    ...(path === undefined ? {} : { where: path }),
  });
}
