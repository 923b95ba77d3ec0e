import { isDynamic, type Recipe } from '../calibration/recipe.ts';
import { NpucError } from '../compiler/errors.ts';
import { editDistance } from '../compiler/nearest.ts';

/** Hexagon Tensor Processor architectures that the pinned toolchain compiles for. */
export type HtpArch = 68 | 69 | 73 | 75 | 79 | 81;

/** Facts about one SoC. */
export interface Soc {
  /** The vendor's part name; the canonical spelling. */
  readonly name: string;
  /** The vendor library's own number for it (`soc_model`). */
  readonly number: number;
  readonly arch: HtpArch;
  /** On-chip memory of the HTP in MiB, where a public source says it; the compiler does not check it. */
  readonly vtcmMegabytes?: number;
  /** Names that users know it by, without the brand. */
  readonly marketing: readonly string[];
  /**
   * True: number and architecture were read back from a binary compiled for it and the library's log names the part.
   * False: number and architecture were read back, the name comes from a public table only.
   */
  readonly measured: boolean;
}

/** Where a fact of the table comes from, and whether it was seen on the vendor's own libraries. */
export interface FactSource {
  readonly source: string;
  readonly measured: boolean;
}

/** The sources of each column. `measured` of a row says whether the library's log names the part as well. */
export const SOC_SOURCES: Readonly<Record<Exclude<keyof Soc, 'measured'>, FactSource>> = {
  name: { source: 'the log of the vendor library where the row is measured, else public tables', measured: true },
  number: { source: 'QAIRT 2.51: compiled for it and read back from the binary', measured: true },
  arch: { source: 'QAIRT 2.51: compiled for it and read back from the binary', measured: true },
  vtcmMegabytes: {
    source: 'SoC tables of executorch (qc_schema.py) and LiteRT (vendors/qualcomm/core/schema/soc_table.cc)',
    measured: false,
  },
  marketing: { source: "the vendor's product pages", measured: false },
};

const SOCS: readonly Soc[] = [
  { name: 'SM8350', number: 30, arch: 68, vtcmMegabytes: 4, marketing: ['888', '888+'], measured: true },
  { name: 'SM8450', number: 36, arch: 69, vtcmMegabytes: 8, marketing: ['8 Gen 1'], measured: true },
  { name: 'SM8475', number: 42, arch: 69, vtcmMegabytes: 8, marketing: ['8+ Gen 1'], measured: true },
  { name: 'SM8550', number: 43, arch: 73, vtcmMegabytes: 8, marketing: ['8 Gen 2'], measured: true },
  { name: 'SM8635', number: 68, arch: 73, marketing: ['8s Gen 3'], measured: true },
  { name: 'SM8650', number: 57, arch: 75, vtcmMegabytes: 8, marketing: ['8 Gen 3'], measured: true },
  { name: 'SM8735', number: 85, arch: 73, marketing: ['8s Gen 4'], measured: true },
  { name: 'SM8750', number: 69, arch: 79, vtcmMegabytes: 8, marketing: ['8 Elite'], measured: true },
  { name: 'SM8845', number: 97, arch: 81, vtcmMegabytes: 8, marketing: ['8 Gen 5'], measured: true },
  { name: 'SM8850', number: 87, arch: 81, vtcmMegabytes: 8, marketing: ['8 Elite Gen 5'], measured: true },
  { name: 'SM7325', number: 35, arch: 68, marketing: ['778G'], measured: true },
  { name: 'SM7450', number: 41, arch: 69, marketing: ['7 Gen 1'], measured: true },
  { name: 'SM7475', number: 54, arch: 69, marketing: ['7+ Gen 2'], measured: true },
  { name: 'SM7550', number: 64, arch: 73, marketing: ['7 Gen 3'], measured: true },
  { name: 'SM7675', number: 70, arch: 73, marketing: ['7+ Gen 3'], measured: true },
  { name: 'SC8380XP', number: 60, arch: 73, vtcmMegabytes: 8, marketing: ['X Elite', 'X Plus'], measured: true },
  { name: 'SC8480XP', number: 88, arch: 81, marketing: ['X2 Elite', 'X2 Elite Extreme'], measured: true },
  { name: 'SA8255', number: 52, arch: 73, vtcmMegabytes: 8, marketing: [], measured: false },
  { name: 'SA8295', number: 39, arch: 68, vtcmMegabytes: 8, marketing: ['SA8295P'], measured: true },
  { name: 'QCS6490', number: 93, arch: 68, vtcmMegabytes: 2, marketing: ['QCM6490'], measured: true },
  { name: 'QCS8300', number: 82, arch: 75, vtcmMegabytes: 8, marketing: ['QCS8275'], measured: true },
  { name: 'QCS8550', number: 66, arch: 73, marketing: [], measured: true },
  { name: 'QCS9100', number: 77, arch: 73, vtcmMegabytes: 8, marketing: ['QCS9075'], measured: false },
  { name: 'SXR2230P', number: 53, arch: 69, vtcmMegabytes: 8, marketing: ['XR2 Gen 2'], measured: true },
];

/** What only some architectures can do. */
export type HtpFeature = 'fp16' | 'lpbq' | 'weight-sharing' | 'matmul-16x16' | 'kv-s16' | 'extended-udma';

interface FeatureRule {
  readonly about: string;
  readonly supports: (arch: HtpArch) => boolean;
  readonly source: string;
  /** What was measured on the simulator; empty where nothing was, and `source` alone vouches for it. */
  readonly measured: string;
}

export const HTP_FEATURES: Readonly<Record<HtpFeature, FeatureRule>> = {
  fp16: {
    about: 'arithmetic in half floats',
    supports: (arch) => arch >= 69,
    source: 'measured',
    measured:
      'the float demo decoder against ONNX Runtime: v68 cannot create its operators, v69, v73, v75 and v81 64 dB, v79 66 dB',
  },
  lpbq: {
    about: 'two-level block scales as a native integer MatMul',
    supports: (arch) => arch >= 69,
    source: 'vendor documentation',
    // The claim alone says little: older architectures accept the form, at a precision like that of half floats.
    measured: 'u16 x int4 block 32 MatMul against ONNX Runtime: v68 and v69 62.8 dB, v73 to v81 89.8 dB',
  },
  'weight-sharing': {
    about: 'several graphs of one binary use one copy of the weights',
    supports: (arch) => arch >= 73,
    source: 'vendor documentation',
    measured: 'the compiler writes shared binaries for v68 and v69 too; whether such a device loads them is not known',
  },
  'matmul-16x16': {
    about: 'MatMul of two 16-bit activations',
    supports: (arch) => arch >= 73,
    source: 'measured',
    measured: 'u16 x s16: refused on v68 and v69, 80.0 dB on v73, v75, v79, v81',
  },
  'kv-s16': {
    about: 'a 16-bit symmetric KV cache: attention multiplies it with 16-bit activations',
    supports: (arch) => arch >= 73,
    source: 'follows from matmul-16x16',
    measured: '',
  },
  'extended-udma': {
    about: 'wider direct memory access',
    supports: (arch) => arch === 81,
    source: 'measured',
    measured: 'v75 and v79 fail to compose the graph with the option, v81 compiles',
  },
};

/** One HTP context addresses 32 bits: weights, activations and code of all its graphs together (vendor documentation). */
export const HTP_CONTEXT_LIMIT_BYTES = 2 ** 32;

/** Every SoC of the table, in a stable order. */
export function listSocs(): readonly Soc[] {
  return SOCS;
}

/**
 * The SoC of a part name ("SM8750", "sm8750-ab") or a marketing name ("Snapdragon 8 Elite", "8 elite").
 * @throws TG001 for a name that is not in the table, with the nearest ones: the vendor's library would compile for a
 *   default SoC without a word.
 */
export function findSoc(name: string): Soc {
  const wanted = normalize(name);
  const match = SOCS.find((soc) => namesOf(soc).some((known) => normalize(known) === wanted));
  if (match) return match;
  const nearest = SOCS.flatMap((soc) =>
    namesOf(soc).map((known) => ({ soc, distance: editDistance(normalize(known), wanted) })),
  )
    .sort((a, b) => a.distance - b.distance)
    .map(({ soc }) => soc);
  const hint = [...new Set(nearest)].slice(0, 3).map((soc) => `${soc.name}${describeMarketing(soc)}`);
  throw new NpucError('TG001', { message: `SoC ${name} is not known`, hint: `nearest: ${hint.join(', ')}` });
}

/**
 * The SoC of the vendor's own number, as a manifest keeps it.
 * @throws TG001 for a number that is not in the table
 */
export function socOfNumber(number: number): Soc {
  const match = SOCS.find((soc) => soc.number === number);
  if (match) return match;
  throw new NpucError('TG001', {
    message: `SoC number ${number} is not known`,
    hint: `known numbers: ${SOCS.map((soc) => `${soc.number} (${soc.name})`).join(', ')}`,
  });
}

/** Whether a SoC has a feature. */
export function socSupports(soc: Soc, feature: HtpFeature): boolean {
  return HTP_FEATURES[feature].supports(soc.arch);
}

/** @throws TG002 when the SoC lacks the feature. */
export function requireFeature(soc: Soc, feature: HtpFeature, hint: string): void {
  if (socSupports(soc, feature)) return;
  const able = SOCS.filter((other) => socSupports(other, feature)).map((other) => other.name);
  throw new NpucError('TG002', {
    message: `${soc.name} (HTP v${soc.arch}) does not have ${feature}: ${HTP_FEATURES[feature].about}`,
    hint: `${hint}; SoCs that have it: ${able.join(', ')}`,
  });
}

/** @throws TG002 for integer weights under float activations: no HTP has products of the two */
export function requireStatic(recipe: Pick<Recipe, 'scheme'>): void {
  if (!isDynamic(recipe)) return;
  throw new NpucError('TG002', {
    message: `HTP has no dynamic quantization, and --scheme ${recipe.scheme} leaves the activations floats`,
    hint: 'use --scheme w8a16 or w4a16 for qnn, or --target tflite',
  });
}

function namesOf(soc: Soc): string[] {
  return [soc.name, ...soc.marketing];
}

function describeMarketing(soc: Soc): string {
  return soc.marketing.length > 0 ? ` (${soc.marketing.join(', ')})` : '';
}

/** Lower case without brand, spaces, hyphens and the speed grade of a part name (SM8650-AB). */
function normalize(name: string): string {
  const lower = name.toLowerCase().trim();
  const part = /^([a-z]{2,3}\d{4}[a-z]*)(-[a-z0-9]{1,3})+$/.exec(lower)?.[1] ?? lower;
  return part
    .replace(/\b(qualcomm|snapdragon|mobile|platform)\b|[™®]/g, '')
    .replace(/ plus\b/g, '+')
    .replace(/[\s_-]/g, '');
}
