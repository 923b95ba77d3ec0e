import { z } from 'zod';
import type { RopeConfig } from '../../compiler/import/huggingface/config.ts';
import type { GenieTable } from './genie-table.ts';

/**
 * The part of Genie's configuration that bundles use, with every key that Genie takes there. Genie refuses unknown keys
 * without saying which (status -8), so the schema is kept here as facts (libGenie 1.21, QAIRT 2.51; each measured).
 */
const version = z.literal(1);
const whole = z.number().int();

const scaling = z.strictObject({
  'rope-type': z.enum(['default', 'llama3']),
  factor: z.number().positive().optional(),
  'low-freq-factor': z.number().positive().optional(),
  'high-freq-factor': z.number().positive().optional(),
  'original-max-position-embeddings': z.number().positive().optional(),
});

const backend = z.strictObject({
  version,
  type: z.literal('QnnHtp'),
  QnnHtp: z.strictObject({
    version,
    'use-mmap': z.boolean(),
    'spill-fill-bufsize': whole.nonnegative(),
    'mmap-budget': whole.nonnegative(),
    poll: z.boolean(),
    'cpu-mask': z.string().regex(/^0x[0-9a-fA-F]+$/),
    // Optional in Genie's schema, but without it the dialog cannot be created.
    'kv-dim': whole.positive(),
    // Genie takes a negative base without a word.
    'rope-theta': z.number().positive().optional(),
    'pos-id-dim': whole.positive().optional(),
    'allow-async-init': z.boolean().optional(),
    'allow-async-enqueue': z.boolean().optional(),
    'enable-graph-switching': z.boolean().optional(),
    'graph-retention-order': z.array(z.string()).optional(),
    'execute-select-graphs': z.array(z.string()).optional(),
    'shared-engine': z.boolean().optional(),
    'data-alignment-size': whole.nonnegative().optional(),
    'direct-io': z.boolean().optional(),
  }),
  extensions: z.string().optional(),
});

const quantity = z.union([z.number(), z.string()]);

const embedding = z.strictObject({
  version,
  type: z.literal('lut'),
  size: whole.positive(),
  // `native` is taken and then fails at the first prompt.
  datatype: z.enum(['float32', 'ufixed8', 'ufixed16']),
  'lut-path': z.string(),
  'quant-param': z.strictObject({ type: z.literal('pcq').optional(), scale: quantity, offset: quantity }).optional(),
});

const token = z.union([whole, z.array(whole).min(1)]);

export const genieConfigSchema = z.strictObject({
  dialog: z.strictObject({
    version,
    type: z.literal('basic'),
    'max-num-tokens': whole.positive().optional(),
    'stop-sequence': z.array(z.string()).optional(),
    context: z.strictObject({
      version,
      size: whole.positive(),
      'n-vocab': whole.positive(),
      'bos-token': whole,
      'eos-token': token,
      'eot-token': whole.optional(),
      'pad-token': whole.optional(),
    }),
    // Optional in Genie's schema, but without it the dialog cannot be created.
    sampler: z.strictObject({
      version,
      type: z.literal('basic').optional(),
      seed: whole.optional(),
      temp: z.number().nonnegative().optional(),
      'top-k': whole.nonnegative().optional(),
      'top-p': z.number().min(0).max(1).optional(),
      greedy: z.boolean().optional(),
      'token-penalty': z.record(z.string(), z.unknown()).optional(),
    }),
    tokenizer: z.strictObject({ version, path: z.string() }),
    embedding: embedding.optional(),
    engine: z.strictObject({
      version,
      // Genie takes 0 and then lets nothing run in parallel.
      'n-threads': whole.positive(),
      backend,
      model: z.strictObject({
        version,
        type: z.literal('binary'),
        binary: z.strictObject({ version, 'ctx-bins': z.array(z.string()).min(1) }),
        'positional-encoding': z
          .strictObject({
            type: z.literal('rope'),
            'rope-dim': whole.positive(),
            'rope-theta': z.number().positive(),
            'rope-scaling': scaling.optional(),
          })
          .optional(),
      }),
    }),
  }),
});

/** `genie_config.json` of a dialog on the HTP. */
export type GenieConfig = z.infer<typeof genieConfigSchema>;

/** `htp_backend_ext_config.json`: Genie ignores unknown keys and a missing file, so what counts is checked here. */
export const extensionSchema = z.strictObject({
  devices: z
    .array(
      z.strictObject({
        soc_model: whole.positive(),
        dsp_arch: z.string(),
        cores: z
          .array(z.strictObject({ core_id: whole, perf_profile: z.string(), rpc_control_latency: whole.optional() }))
          .min(1),
      }),
    )
    .length(1),
  memory: z.strictObject({ mem_type: z.string() }).optional(),
  context: z.strictObject({ weight_sharing_enabled: z.boolean() }).optional(),
});

export type HtpExtension = z.infer<typeof extensionSchema>;

export interface GenieSettings {
  readonly cache: number;
  readonly vocabSize: number;
  readonly headDim: number;
  readonly rope: RopeConfig;
  /** Genie puts it before every prompt. */
  readonly startId: number | undefined;
  readonly eosIds: readonly number[];
  /** `generation_config.json`, asked for the sampler. */
  readonly generation: Readonly<Record<string, unknown>>;
  readonly binaries: readonly string[];
  readonly spillFillBytes: number;
  /** Where the graphs take rows. */
  readonly table?: GenieTable;
}

export const TOKENIZER = 'tokenizer.json';
export const EXTENSION = 'htp_backend_ext_config.json';

/** Makes `genie_config.json`. Tables of the rotary embedding come from `rope-theta`, scaled ones from their own section. */
export function makeGenieConfig(settings: GenieSettings): GenieConfig {
  const { rope, headDim, eosIds } = settings;
  const half = headDim / 2;
  const plain = rope.type === 'default';
  return {
    dialog: {
      version: 1,
      type: 'basic',
      context: {
        version: 1,
        size: settings.cache,
        'n-vocab': settings.vocabSize,
        'bos-token': settings.startId ?? -1,
        'eos-token': eosIds.length > 1 ? [...eosIds] : (eosIds[0] ?? -1),
      },
      sampler: makeSampler(settings.generation),
      tokenizer: { version: 1, path: TOKENIZER },
      ...(settings.table ? { embedding: makeEmbedding(settings.table) } : {}),
      engine: {
        version: 1,
        'n-threads': 3,
        backend: {
          version: 1,
          type: 'QnnHtp',
          QnnHtp: {
            version: 1,
            'use-mmap': true,
            'spill-fill-bufsize': settings.spillFillBytes,
            'mmap-budget': 0,
            poll: true,
            'cpu-mask': '0xe0',
            'kv-dim': headDim,
            // Either these two or the positional-encoding section: both together are refused.
            ...(plain ? { 'pos-id-dim': half, 'rope-theta': rope.theta } : {}),
            'allow-async-init': false,
          },
          extensions: EXTENSION,
        },
        model: {
          version: 1,
          type: 'binary',
          binary: { version: 1, 'ctx-bins': [...settings.binaries] },
          ...(plain ? {} : { 'positional-encoding': makePositions(rope, half) }),
        },
      },
    },
  };
}

/** The section of a lookup table. Scales and offsets per row are files of their own. */
export function makeEmbedding({ file, datatype, width, quantization }: GenieTable): GenieEmbedding {
  const perRow = typeof quantization?.scale === 'string';
  return {
    version: 1,
    type: 'lut',
    size: width,
    datatype,
    'lut-path': file,
    ...(quantization ? { 'quant-param': { ...(perRow ? { type: 'pcq' as const } : {}), ...quantization } } : {}),
  };
}

type GenieEmbedding = NonNullable<GenieConfig['dialog']['embedding']>;
type Positions = NonNullable<GenieConfig['dialog']['engine']['model']['positional-encoding']>;

function makePositions(rope: RopeConfig, half: number): Positions {
  return {
    type: 'rope',
    'rope-dim': half,
    'rope-theta': rope.theta,
    'rope-scaling': {
      'rope-type': 'llama3',
      factor: rope.factor,
      'low-freq-factor': rope.lowFrequencyFactor,
      'high-freq-factor': rope.highFrequencyFactor,
      'original-max-position-embeddings': rope.originalPositions,
    },
  };
}

/** The checkpoint's own sampling, greedy where it does not ask for any; absent numbers are transformers' defaults. */
function makeSampler(generation: Readonly<Record<string, unknown>>): GenieConfig['dialog']['sampler'] {
  const number = (key: string, fallback: number): number => {
    const value = generation[key];
    return typeof value === 'number' ? value : fallback;
  };
  if (generation.do_sample !== true) return { version: 1, seed: 42, temp: 1, 'top-k': 1, 'top-p': 1, greedy: true };
  return {
    version: 1,
    seed: 42,
    temp: number('temperature', 1),
    'top-k': number('top_k', 50),
    'top-p': number('top_p', 1),
    greedy: false,
  };
}

/** How a configuration's rotary frequencies are made, or undefined where it does not say. */
export function readRope(config: GenieConfig): RopeConfig | undefined {
  const { model, backend: back } = config.dialog.engine;
  const positions = model['positional-encoding'];
  const theta = positions ? positions['rope-theta'] : back.QnnHtp['rope-theta'];
  if (theta === undefined) return undefined;
  const scale = positions?.['rope-scaling'];
  return {
    type: scale?.['rope-type'] ?? 'default',
    theta,
    factor: scale?.factor ?? 1,
    lowFrequencyFactor: scale?.['low-freq-factor'] ?? 1,
    highFrequencyFactor: scale?.['high-freq-factor'] ?? 4,
    originalPositions: scale?.['original-max-position-embeddings'] ?? 1,
  };
}

/** Makes the backend's extension file; `perf_profile` burst is the vendor's fastest. */
export function makeExtension(soc: number, arch: string, shared: boolean): HtpExtension {
  return {
    devices: [
      {
        soc_model: soc,
        dsp_arch: arch,
        cores: [{ core_id: 0, perf_profile: 'burst', rpc_control_latency: 100 }],
      },
    ],
    memory: { mem_type: 'shared_buffer' },
    context: { weight_sharing_enabled: shared },
  };
}
