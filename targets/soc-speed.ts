import type { FactSource } from './socs.ts';

/** What bounds the speed of a SoC: numbers from public pages, none of them measured here. */
export interface SocSpeed {
  /** Peak of the NPU in 8-bit integers, 10^12 operations a second (a multiply-add is two). */
  readonly tops?: number;
  readonly topsSource?: string;
  /** Peak of the memory, 10^9 bytes a second. */
  readonly gigabytesPerSecond: number;
  readonly memorySource: string;
}

/** The vendor gives the transfer clock and a bus of 4 x 16 bits: clock x 2 x 8 bytes. */
const BUS = 'LPDDR clock of the product page x 2 x 64 bits';
const AFTER_8_GEN_3 = '45 TOPS of the 8 Gen 3 (press)';

/**
 * Peaks by part name. Qualcomm gives no TOPS for its recent phone parts: there the number is that of the press, or the vendor's
 * own "so much faster than the one before" times it. A part that is not here has no estimate.
 */
export const SOC_SPEEDS: Readonly<Record<string, SocSpeed>> = {
  SM8350: {
    tops: 26,
    topsSource: 'product page of the Snapdragon 888 (whole AI Engine)',
    gigabytesPerSecond: 51.2,
    memorySource: BUS,
  },
  SM8450: { gigabytesPerSecond: 51.2, memorySource: BUS },
  SM8475: { gigabytesPerSecond: 51.2, memorySource: BUS },
  SM8550: {
    tops: 22.7,
    topsSource: `${AFTER_8_GEN_3} / 1.98 ("98 % faster", vendor)`,
    gigabytesPerSecond: 67.2,
    memorySource: BUS,
  },
  SM8650: { tops: 45, topsSource: AFTER_8_GEN_3, gigabytesPerSecond: 76.8, memorySource: BUS },
  SM8750: {
    tops: 65.3,
    topsSource: `${AFTER_8_GEN_3} x 1.45 ("45 % faster", vendor)`,
    gigabytesPerSecond: 84.8,
    memorySource: BUS,
  },
  SM8850: {
    tops: 89.4,
    topsSource: `${AFTER_8_GEN_3} x 1.45 x 1.37 ("37 % faster", vendor)`,
    gigabytesPerSecond: 84.8,
    memorySource: BUS,
  },
  SC8380XP: {
    tops: 45,
    topsSource: 'product page of the Snapdragon X Elite',
    gigabytesPerSecond: 135,
    memorySource: 'product page of the Snapdragon X Elite',
  },
  SC8480XP: {
    tops: 80,
    topsSource: 'product page of the Snapdragon X2 Elite',
    gigabytesPerSecond: 152,
    memorySource: 'product page of the Snapdragon X2 Elite',
  },
};

/** A decoder as far as speed goes. */
export interface SpeedModel {
  readonly name: string;
  readonly layers: number;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly heads: number;
  readonly keyValueHeads: number;
  readonly headDim: number;
  readonly vocabSize: number;
}

/** A speed that somebody measured on a device and published. */
export interface PublishedRun extends FactSource {
  readonly soc: string;
  readonly model: SpeedModel;
  /** W4A16, blocks or channels, with an 8-bit head and an 8-bit cache: what all of these runs use. */
  readonly scheme: 'w4a16';
  /** New tokens of a prefill run. */
  readonly tokens: number;
  readonly cache: number;
  readonly prefillTokensPerSecond?: number;
  readonly decodeTokensPerSecond: number;
}

const LLAMA_3B: SpeedModel = {
  name: 'Llama-3.2-3B',
  layers: 28,
  hiddenSize: 3072,
  intermediateSize: 8192,
  heads: 24,
  keyValueHeads: 8,
  headDim: 128,
  vocabSize: 128256,
};

const QWEN_3B: SpeedModel = {
  name: 'Qwen2.5-3B',
  layers: 36,
  hiddenSize: 2048,
  intermediateSize: 11008,
  heads: 16,
  keyValueHeads: 2,
  headDim: 128,
  vocabSize: 151936,
};

/** BlueLM-3B's dimensions are not public: 2.7e9 weights in the proportions of a decoder of that size. */
const BLUELM_3B: SpeedModel = {
  name: 'BlueLM-3B (2.7e9 weights, dimensions assumed)',
  layers: 32,
  hiddenSize: 2560,
  intermediateSize: 7680,
  heads: 32,
  keyValueHeads: 8,
  headDim: 80,
  vocabSize: 100008,
};

const AI_HUB =
  'qualcomm/ai-hub-models, Llama-3.2-3B, Genie: one chunk of 128 tokens is the least time to a first token';
const SMARTBENCH = 'SmartBench (arXiv 2503.06029), iQOO 12';

/** Dimensity 9300, for BlueLM-V-3B: a part that npuc does not compile for, here to test the estimate only. */
export const DIMENSITY_9300: SocSpeed = {
  gigabytesPerSecond: 76.8,
  memorySource: 'LPDDR5T-9600 of the product page x 64 bits',
};

/** What estimates are held against. */
export const PUBLISHED_RUNS: readonly PublishedRun[] = [
  {
    soc: 'SM8650',
    model: BLUELM_3B,
    scheme: 'w4a16',
    tokens: 128,
    cache: 2048,
    prefillTokensPerSecond: 930.9,
    decodeTokensPerSecond: 27.1,
    source: SMARTBENCH,
    measured: true,
  },
  {
    soc: 'SM8650',
    model: QWEN_3B,
    scheme: 'w4a16',
    tokens: 128,
    cache: 2048,
    prefillTokensPerSecond: 873.4,
    decodeTokensPerSecond: 24.9,
    source: SMARTBENCH,
    measured: true,
  },
  {
    soc: 'SM8750',
    model: LLAMA_3B,
    scheme: 'w4a16',
    tokens: 128,
    cache: 4096,
    prefillTokensPerSecond: 128 / 0.082,
    decodeTokensPerSecond: 28,
    source: AI_HUB,
    measured: true,
  },
  {
    soc: 'SM8850',
    model: LLAMA_3B,
    scheme: 'w4a16',
    tokens: 128,
    cache: 4096,
    prefillTokensPerSecond: 128 / 0.069,
    decodeTokensPerSecond: 32.7,
    source: AI_HUB,
    measured: true,
  },
  {
    soc: 'SC8380XP',
    model: LLAMA_3B,
    scheme: 'w4a16',
    tokens: 128,
    cache: 4096,
    prefillTokensPerSecond: 128 / 0.117,
    decodeTokensPerSecond: 11.9,
    source: AI_HUB,
    measured: true,
  },
  {
    soc: 'Dimensity 9300',
    model: BLUELM_3B,
    scheme: 'w4a16',
    tokens: 128,
    cache: 2048,
    decodeTokensPerSecond: 24.4,
    source: 'BlueLM-V-3B (arXiv 2411.10640)',
    measured: true,
  },
];
