import { existsSync, readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { parse } from 'yaml';
import { z } from 'zod';
import { NpucError } from '../compiler/errors.ts';

const list = <T extends z.ZodType>(item: T) =>
  z.preprocess(
    (value) =>
      typeof value === 'string'
        ? value.split(',').map((part) => part.trim())
        : typeof value === 'number'
          ? [value]
          : value,
    z.array(item).min(1),
  );

const count = z.coerce.number().int().positive();

/** Everything that `npuc compile` can be told, as file or as flags. */
export const compileConfig = z.strictObject({
  source: z.string().optional(),
  soc: z.string().default('SM8750'),
  scheme: z.string().default('w4a16'),
  tokens: list(count).default([128]),
  cache: count.default(1024),
  target: list(z.enum(['onnx', 'qnn', 'tflite'])).optional(),
  out: z.string().default('build'),
  kv: z.union([z.literal(8), z.literal(16)]).default(8),
  block: z.number().int().nonnegative().optional(),
  range: z.enum(['min-max', 'percentile', 'histogram-mse']).optional(),
  io: z.enum(['float', 'quantized']).default('float'),
  calibrate: z.string().optional(),
  calibrationWindows: count.default(32),
  evaluate: z.string().optional(),
  evalTokens: count.default(2048),
  prompt: z.string().default('The capital of France is'),
  bind: z.array(z.string()).default([]),
  threads: count.default(2),
  allowExtrapolation: z.boolean().default(false),
  overrides: z
    .array(
      z.strictObject({
        match: z.string(),
        weight: z
          .strictObject({
            bits: z.union([z.literal(4), z.literal(8)]),
            block: z.union([z.literal(0), z.literal(16), z.literal(32), z.literal(64)]).default(0),
          })
          .optional(),
        activation: z.union([z.literal(8), z.literal(16)]).optional(),
      }),
    )
    .default([]),
});

export type CompileConfig = z.infer<typeof compileConfig>;
/** As it is written: everything optional. */
export type CompileConfigInput = Partial<CompileConfig>;

/** Keys that are lists: as flags their repetitions add up. */
const LISTS: ReadonlySet<string> = new Set(['bind', 'tokens', 'target', 'overrides']);

const NAMES = ['npuc.config.yaml', 'npuc.config.yml', 'npuc.config.json', 'npuc.config.mjs'];

/**
 * Reads a configuration file: the given one, or the first of the known names in the working folder.
 * @throws CL002 when it cannot be read
 */
export async function readConfig(path: string | undefined): Promise<CompileConfigInput> {
  const file = path ?? NAMES.find((name) => existsSync(name));
  if (!file) return {};
  try {
    if (file.endsWith('.mjs')) {
      const module = (await import(pathToFileURL(resolve(file)).href)) as { default: CompileConfigInput };
      return module.default;
    }
    return (parse(readFileSync(file, 'utf8')) ?? {}) as CompileConfigInput;
  } catch (cause) {
    throw new NpucError('CL002', { message: `cannot read ${file}: ${(cause as Error).message}`, where: file, cause });
  }
}

/** Flags over the file over the defaults. @throws CL002 naming the key that is wrong */
export function mergeConfig(
  file: CompileConfigInput,
  flags: Readonly<Record<string, unknown>> | object,
): CompileConfig {
  const known = Object.keys(compileConfig.shape);
  // A flag given twice arrives as an array: the last one counts, as in most tools.
  const given = Object.fromEntries(
    Object.entries(flags)
      .filter(([key, value]) => known.includes(key) && value !== undefined)
      .map(([key, value]) => [key, Array.isArray(value) && !LISTS.has(key) ? value.at(-1) : value]),
  );
  const parsed = compileConfig.safeParse({ ...file, ...given });
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0]!;
  const key = issue.path.join('.');
  throw new NpucError('CL002', {
    message: key ? `${key}: ${issue.message}` : issue.message,
    where: key in given ? `--${key}` : 'the configuration file',
    hint: 'npuc compile --help lists the options',
  });
}
