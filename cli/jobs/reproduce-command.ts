import { effortRecipe } from '../../calibration/effort.ts';
import { makeRecipe, type Override } from '../../calibration/recipe.ts';
import { defaultText } from '../../calibration/texts.ts';
import type { NpuOptions } from '../../targets/tflite/npu/compile-npu.ts';
import type { CompileOptions } from './compile-decoder.ts';

/** The command line that makes a compile's artifacts and report again; what equals its default is left out. */
export function reproduceCommand(options: CompileOptions): string {
  const { recipe, evaluation } = options;
  const usual = effortRecipe(makeRecipe(recipe.scheme), options.effort);
  const flags: [string, string][] = [
    ['soc', options.soc.name],
    ['scheme', recipe.scheme],
  ];
  if (options.budget) flags.push(['budget', `weights<=${options.budget.bytes}`]);
  if (options.effort !== 'default') flags.push(['effort', options.effort]);
  if (recipe.weight.block !== usual.weight.block) flags.push(['block', String(recipe.weight.block)]);
  if (recipe.range !== usual.range) flags.push(['range', recipe.range]);
  if (recipe.rotation !== usual.rotation) flags.push(['rotation', recipe.rotation]);
  if (recipe.outliers !== usual.outliers) flags.push(['outliers', recipe.outliers]);
  if (recipe.rounding !== usual.rounding) flags.push(['rounding', recipe.rounding]);
  const { tokens, caches } = options.shapes;
  flags.push(['kv', String(recipe.cache)], ['tokens', tokens.join(',')], ['cache', caches.join(',')]);
  flags.push(['target', options.targets.join(',')]);
  const { split, embedding, head, maxMemory } = options.split;
  if (split !== 'auto') flags.push(['split', String(split)]);
  if (embedding) flags.push(['split-embedding', '']);
  if (head) flags.push(['split-head', '']);
  if (maxMemory !== undefined) flags.push(['max-memory', String(maxMemory)]);
  if (options.embedding !== 'in-graph') flags.push(['embedding', options.embedding]);
  if (options.profile !== 'npu') flags.push(['profile', options.profile]);
  if (options.io !== 'float') flags.push(['io', options.io]);
  const { dlc, encodings, given, npu } = options.outputs;
  if (given) flags.push(['encodings-in', given.path]);
  if (encodings !== '1.0') flags.push(['encodings', encodings]);
  if (dlc) flags.push(['dlc', '']);
  flags.push(...npuFlags(npu));
  if (options.requantize) flags.push(['requantize', '']);
  if (options.allowExtrapolation) flags.push(['allow-extrapolation', '']);
  if (options.calibrationText !== defaultText('calibration')) flags.push(['calibrate', options.calibrationText]);
  flags.push(['calibration-windows', String(options.calibrationWindows)]);
  if (evaluation.text !== defaultText('evaluation')) flags.push(['evaluate', evaluation.text]);
  flags.push(['eval-tokens', String(evaluation.tokens)], ['prompt', evaluation.prompt], ['out', options.out]);
  flags.push(...recipe.overrides.flatMap(overrideFlags));
  return `npuc compile ${quote(options.source)} ${flags.map(writeFlag).join(' ')}`;
}

/** An override of weights and one of values are two flags. */
function overrideFlags({ match, weight, activation }: Override): [string, string][] {
  const block = weight && weight.block > 0 ? `:${weight.block}` : '';
  return [
    ...(weight ? [['override', `${match}=w${weight.bits}${block}`] as [string, string]] : []),
    ...(activation ? [['override', `${match}=a${activation}`] as [string, string]] : []),
  ];
}

/** What `--npu` was told. */
export function npuFlags(npu: NpuOptions | undefined): [string, string][] {
  if (!npu) return [];
  return [
    ['npu', npu.requests.map(({ vendor, soc }) => `${vendor}:${soc}`).join(',')],
    ...(npu.claims ? [['npu-claims', ''] as [string, string]] : []),
    ...(npu.sdk === undefined ? [] : [['npu-sdk', npu.sdk] as [string, string]]),
  ];
}

/** Flags that take no value. */
const SWITCHES: ReadonlySet<string> = new Set([
  'allow-extrapolation',
  'dlc',
  'npu-claims',
  'requantize',
  'split-embedding',
  'split-head',
]);

function writeFlag([name, value]: readonly [string, string]): string {
  if (SWITCHES.has(name)) return `--${name}`;
  // A value that begins with a dash would be taken for a flag.
  return `--${name}${value.startsWith('-') ? '=' : ' '}${quote(value)}`;
}

/** Quotes an argument for a POSIX shell where it needs it. */
export function quote(argument: string): string {
  return /^[\w@%+=:,./-]+$/.test(argument) ? argument : `'${argument.replaceAll("'", `'\\''`)}'`;
}
