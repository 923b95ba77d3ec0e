import { readFileSync } from 'node:fs';
import { LineCounter, parseDocument } from 'yaml';
import { z } from 'zod';
import { NpucError } from '../../compiler/errors.ts';
import type { Budgets } from './budgets.ts';
import {
  METRICS,
  type MeasuredEncoding,
  type MeasuredValue,
  type MeasuredWeight,
  type Measurement,
  type MetricKey,
  weightedMean,
} from './measurement.ts';
import type { NoiseFloor } from './noise-floor.ts';

/** Raised when a reader of the former format would misread the file. */
const FORMAT = 1;

/** A committed measurement, with the noise of its figures and the budgets that a reviewer set. */
export interface Baseline {
  readonly measurement: Measurement;
  readonly noise: NoiseFloor;
  readonly budgets: Budgets;
  /** Line of a value, weight, metric, stage or budget in the file, from 1, by its path: `values.layers.0.q_proj`. */
  readonly lines: ReadonlyMap<string, number>;
  readonly path: string;
}

const HEAD = `# Baseline of \`npuc check\`, reviewed like code: \`npuc check ... --update\` writes all of it but the budgets, which are yours.
# Figures are means over the windows of held-out text; noise is how far they move between draws of calibration windows.
`;

/** The text of a baseline: one line a figure in a stable order, so that a review shows what moved. */
export function writeBaseline(measurement: Measurement, noise: NoiseFloor, budgets: Budgets): string {
  const m = measurement;
  const lines = [
    `format: ${FORMAT}`,
    `npuc: ${quote(m.npuc)}`,
    `engine: ${quote(m.engine)}`,
    `kind: ${m.kind}`,
    `model: { name: ${quote(m.model.name)}, digest: ${quote(m.model.digest)} }`,
    `target: ${m.target}`,
    'recipe:',
    ...Object.entries(m.recipe).map(([key, value]) => `  ${key}: ${JSON.stringify(value)}`),
    `text: { digest: ${quote(m.text.digest)}, windows: ${m.text.windows}, tokens: ${m.text.tokens} }`,
    `calibration: { digest: ${quote(m.calibration.digest)}, windows: ${m.calibration.windows} }`,
    `budgets: ${JSON.stringify(budgets)}`,
    'bytes:',
    ...Object.entries(m.bytes).map(([key, value]) => `  ${key}: ${value}`),
    `draws: ${noise.draws}`,
    `scale_noise: ${real(noise.scale)}`,
    'metrics:',
    ...METRICS.flatMap(({ key, title, show }) => {
      const series = m.series[key];
      if (!series) return [];
      const mean = weightedMean(series, m.predictions);
      return [`  ${title}: { value: ${real(show(mean))}, mean: ${real(mean)}, noise: ${real(noise.metrics[key]!)} }`];
    }),
    ...section(
      'stages',
      m.stages.map(({ name, sqnr }) => `${quote(name)}: ${decibels(sqnr)}`),
    ),
    'windows:',
    `  predictions: [${m.predictions.join(', ')}]`,
    ...METRICS.flatMap(({ key, title }) =>
      m.series[key] ? [`  ${title}: [${m.series[key].map(real).join(', ')}]`] : [],
    ),
    ...section(
      'values',
      m.values.map((value) => `${quote(value.name)}: ${writeValue(value, noise.values.get(value.name)!)}`),
    ),
    ...section(
      'weights',
      m.weights.map(
        ({ name, form, scale, digest }) =>
          `${quote(name)}: { form: ${quote(form)}, scale: ${real(scale)}, digest: ${JSON.stringify(digest)} }`,
      ),
    ),
    '',
  ];
  return HEAD + lines.join('\n');
}

/** A map of one line an entry; one without entries says that it is one. */
function section(name: string, entries: readonly string[]): string[] {
  return entries.length === 0 ? [`${name}: {}`] : [`${name}:`, ...entries.map((entry) => `  ${entry}`)];
}

function writeValue({ sqnr, cosine, rms, range, encoding }: MeasuredValue, noise: number): string {
  const fields = [
    `sqnr: ${decibels(sqnr)}`,
    `noise: ${Number(noise.toFixed(3))}`,
    `cosine: ${Number(cosine.toFixed(7))}`,
    `rms: ${real(rms)}`,
    `range: [${range.map(real).join(', ')}]`,
    // All digits: a scale is put back as it was.
    ...(encoding ? [`as: ${encoding.dtype}, scale: ${encoding.scale}, zero: ${encoding.zero}`] : []),
  ];
  return `{ ${fields.join(', ')} }`;
}

/** Six digits: enough for a paired difference, and few enough to review. */
function real(value: number): string {
  if (Number.isFinite(value)) return String(Number(value.toPrecision(6)));
  return Number.isNaN(value) ? '.nan' : value > 0 ? '.inf' : '-.inf';
}

function decibels(value: number): string {
  return Number.isFinite(value) ? value.toFixed(2) : real(value);
}

function quote(text: string): string {
  // Of plain words YAML makes numbers, dates and booleans of some.
  return /^[A-Za-z_][\w./*-]*$/.test(text) && !/^(true|false|null|yes|no|on|off|y|n)$/i.test(text)
    ? text
    : JSON.stringify(text);
}

const finite = z.number().refine(Number.isFinite);
/** The schema's own numbers are finite; what is exact has infinitely many dB. */
const figure = z.custom<number>((value) => typeof value === 'number' && !Number.isNaN(value));
const positive = finite.refine((value) => value >= 0);
const count = z.number().int().nonnegative();

const budgets = z.strictObject({
  max_kl: positive.optional(),
  min_top1: positive.optional(),
  max_perplexity: positive.optional(),
  max_perplexity_ratio: positive.optional(),
  min_sqnr: finite.optional(),
  max_bytes: positive.optional(),
  values: z.array(z.strictObject({ match: z.string().min(1), min_sqnr: finite })).optional(),
});

const schema = z.object({
  npuc: z.string(),
  engine: z.string(),
  kind: z.enum(['decoder', 'model']),
  model: z.object({ name: z.string(), digest: z.string() }),
  target: z.enum(['onnx', 'qnn', 'tflite']),
  recipe: z.record(z.string(), z.unknown()),
  text: z.object({ digest: z.string(), windows: count, tokens: count }),
  calibration: z.object({ digest: z.string(), windows: count }),
  budgets: budgets.default({}),
  bytes: z.record(z.string(), finite),
  draws: count,
  scale_noise: positive,
  metrics: z.record(z.string(), z.object({ value: figure, mean: finite, noise: positive })),
  stages: z.record(z.string(), figure),
  windows: z.object({ predictions: z.array(count).min(1) }).catchall(z.array(finite)),
  values: z.record(
    z.string(),
    z.object({
      sqnr: figure,
      noise: positive,
      cosine: finite,
      rms: finite,
      range: z.tuple([figure, figure]),
      as: z.string().optional(),
      scale: finite.optional(),
      zero: z.number().int().optional(),
    }),
  ),
  weights: z.record(z.string(), z.object({ form: z.string(), scale: positive, digest: z.string() })),
});

/** Metrics that a baseline of each kind must have. */
const NEEDED: Readonly<Record<Measurement['kind'], readonly MetricKey[]>> = {
  decoder: ['divergence', 'agreement', 'loss', 'floatLoss'],
  model: ['noise'],
};

/**
 * Reads a baseline.
 * @throws CK001 when there is none, CK002 when it is not well formed, lacks figures or holds some that are no numbers, CK003
 *   when it is of another version
 */
export function readBaseline(path: string): Baseline {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (cause) {
    throw new NpucError('CK001', {
      message: `cannot read ${path}: ${(cause as Error).message}`,
      where: path,
      hint: 'npuc check ... --update writes a first one',
      cause,
    });
  }
  return parseBaseline(text, path);
}

/** As readBaseline, of a text. */
export function parseBaseline(text: string, path: string): Baseline {
  const counter = new LineCounter();
  const document = parseDocument(text, { lineCounter: counter });
  const bad = (message: string): NpucError =>
    new NpucError('CK002', { message, where: path, hint: 'npuc check ... --update writes it anew' });
  if (document.errors.length > 0) throw bad(`${path}: ${document.errors[0]!.message.split('\n')[0]}`);
  const data: unknown = document.toJS();
  if (typeof data !== 'object' || data === null || Array.isArray(data)) throw bad(`${path} holds no baseline`);
  const { format } = data as { format?: unknown };
  if (format !== FORMAT) {
    throw new NpucError('CK003', {
      message: `${path} has format ${String(format)}, this npuc reads ${FORMAT}`,
      where: path,
      hint: 'npuc check ... --update writes it anew; the budgets are kept',
    });
  }
  const parsed = schema.safeParse(data);
  if (!parsed.success) {
    const issue = parsed.error.issues[0]!;
    const at = issue.path.join('.');
    const given = issue.path.reduce<unknown>((each, key) => (each as Record<string, unknown>)?.[key as string], data);
    if (issue.code === 'unrecognized_keys') throw bad(`${at} has no ${issue.keys.join(', ')}`);
    throw bad(given === undefined ? `${at} is missing` : `${at} is ${String(given)}, which is no usable figure`);
  }
  const read = parsed.data;
  const missing = NEEDED[read.kind].map(titleOf).find((title) => !(title in read.metrics) || !read.windows[title]);
  if (missing) throw bad(`the metric ${missing} is missing`);
  const lengths = Object.values(read.windows).map((series) => series.length);
  if (new Set(lengths).size > 1) throw bad('the series of windows do not have one length');
  return { ...toBaseline(read), lines: findLines(document, counter), path };
}

function titleOf(key: MetricKey): string {
  return METRICS.find((metric) => metric.key === key)!.title;
}

type Read = z.infer<typeof schema>;

function toBaseline(read: Read): Omit<Baseline, 'lines' | 'path'> {
  const known = METRICS.filter(({ title }) => read.windows[title] !== undefined);
  const encodingOf = ({ as, scale, zero }: Read['values'][string]): { encoding?: MeasuredEncoding } =>
    as === undefined || scale === undefined ? {} : { encoding: { dtype: as, scale, zero: zero ?? 0 } };
  return {
    measurement: {
      kind: read.kind,
      model: read.model,
      npuc: read.npuc,
      engine: read.engine,
      target: read.target,
      recipe: read.recipe as unknown as Measurement['recipe'],
      text: read.text,
      calibration: read.calibration,
      bytes: read.bytes,
      predictions: read.windows.predictions,
      series: Object.fromEntries(known.map(({ key, title }) => [key, read.windows[title]!])),
      stages: Object.entries(read.stages).map(([name, sqnr]) => ({ name, sqnr })),
      values: Object.entries(read.values).map(
        ([name, value]): MeasuredValue => ({
          name,
          from: [],
          sqnr: value.sqnr,
          cosine: value.cosine,
          rms: value.rms,
          range: value.range,
          ...encodingOf(value),
        }),
      ),
      weights: Object.entries(read.weights).map(([name, weight]): MeasuredWeight => ({ name, ...weight })),
    },
    noise: {
      draws: read.draws,
      metrics: Object.fromEntries(known.map(({ key, title }) => [key, read.metrics[title]!.noise])),
      values: new Map(Object.entries(read.values).map(([name, { noise }]) => [name, noise])),
      scale: read.scale_noise,
    },
    budgets: read.budgets as Budgets,
  };
}

/** Lines of the entries of every map of the file. */
function findLines(document: ReturnType<typeof parseDocument>, counter: LineCounter): Map<string, number> {
  const lines = new Map<string, number>();
  const visit = (node: unknown, at: string, depth: number): void => {
    const { items } = (node ?? {}) as { items?: { key?: { value: unknown; range?: [number] }; value?: unknown }[] };
    for (const item of items ?? []) {
      if (!item.key?.range) continue;
      const path = at === '' ? String(item.key.value) : `${at}.${String(item.key.value)}`;
      lines.set(path, counter.linePos(item.key.range[0]).line);
      if (depth < 1) visit(item.value, path, depth + 1);
    }
  };
  visit(document.contents, '', 0);
  return lines;
}

/** What is known of a measurement before it is made. */
export type CheckSubject = Pick<Measurement, 'kind' | 'model' | 'target' | 'text' | 'predictions'>;

/**
 * Whether a baseline can be compared with a measurement.
 * @throws CK003 for another model, target, or held-out text: figures of windows would be paired that have nothing in common
 */
export function requireSameSubject({ measurement: base, path }: Baseline, now: CheckSubject): void {
  const refuse = (what: string, was: string, is: string): never => {
    throw new NpucError('CK003', {
      message: `${path} is of another ${what}: ${was}, and this is ${is}`,
      where: path,
      hint: 'give the baseline of this one, or --update to write it anew',
    });
  };
  if (base.kind !== now.kind) refuse('kind of model', base.kind, now.kind);
  if (base.model.digest !== now.model.digest)
    refuse(
      'model',
      `${base.model.name} ${base.model.digest.slice(0, 12)}`,
      `${now.model.name} ${now.model.digest.slice(0, 12)}`,
    );
  if (base.target !== now.target) refuse('target', base.target, now.target);
  if (base.text.digest !== now.text.digest)
    refuse('held-out text', base.text.digest.slice(0, 12), now.text.digest.slice(0, 12));
  if (base.predictions.length !== now.predictions.length || base.predictions.some((n, i) => n !== now.predictions[i]))
    refuse('length of held-out text', `${base.text.tokens} tokens`, `${now.text.tokens} tokens`);
}
