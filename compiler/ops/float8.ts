/**
 * Number formats of eight bits and fewer: f8e4m3fn, f8e4m3fnuz, f8e5m2, f8e5m2fnuz, f8e8m0 and f4e2m1.
 * The value tables follow the ONNX specification, "Float stored in 8 bits" and "Float stored in 4 bits".
 */
export type MiniFloat = 'f8e4m3fn' | 'f8e4m3fnuz' | 'f8e5m2' | 'f8e5m2fnuz' | 'f8e8m0' | 'f4e2m1';

interface Format {
  readonly mantissa: number;
  readonly bias: number;
  /** Codes of the positive half, sign bit excluded. */
  readonly codes: number;
  /** The positive codes up to this one are finite. */
  readonly largest: number;
  readonly nan: number | undefined;
  readonly infinity: number | undefined;
  /** `fnuz` formats have one zero and spend the code of -0 on NaN. */
  readonly unsignedZero: boolean;
}

const FORMATS: Readonly<Record<Exclude<MiniFloat, 'f8e8m0'>, Format>> = {
  f8e4m3fn: {
    mantissa: 3,
    bias: 7,
    codes: 128,
    largest: 0x7e,
    nan: 0x7f,
    infinity: undefined,
    unsignedZero: false,
  },
  f8e4m3fnuz: {
    mantissa: 3,
    bias: 8,
    codes: 128,
    largest: 0x7f,
    nan: 0x80,
    infinity: undefined,
    unsignedZero: true,
  },
  f8e5m2: { mantissa: 2, bias: 15, codes: 128, largest: 0x7b, nan: 0x7f, infinity: 0x7c, unsignedZero: false },
  f8e5m2fnuz: {
    mantissa: 2,
    bias: 16,
    codes: 128,
    largest: 0x7f,
    nan: 0x80,
    infinity: undefined,
    unsignedZero: true,
  },
  f4e2m1: { mantissa: 1, bias: 1, codes: 8, largest: 7, nan: undefined, infinity: undefined, unsignedZero: false },
};

/** Value of a positive code, special codes not considered. */
function magnitudeOf(format: Format, code: number): number {
  const exponent = code >> format.mantissa;
  const fraction = (code & ((1 << format.mantissa) - 1)) / (1 << format.mantissa);
  return exponent === 0 ? fraction * 2 ** (1 - format.bias) : (1 + fraction) * 2 ** (exponent - format.bias);
}

const decoders = new Map<MiniFloat, Float32Array>();

/** The value of every code of a format (256 entries, 16 for f4e2m1). */
export function miniFloatValues(dtype: MiniFloat): Float32Array {
  let table = decoders.get(dtype);
  if (table) return table;
  if (dtype === 'f8e8m0') {
    table = Float32Array.from({ length: 256 }, (_, code) => (code === 255 ? Number.NaN : 2 ** (code - 127)));
  } else {
    const format = FORMATS[dtype];
    table = Float32Array.from({ length: format.codes * 2 }, (_, code) => {
      if (code === format.nan) return Number.NaN;
      const sign = code >= format.codes ? -1 : 1;
      const positive = code % format.codes;
      if (format.infinity !== undefined && positive >= format.infinity)
        return positive === format.infinity ? sign * Number.POSITIVE_INFINITY : Number.NaN;
      if (positive > format.largest) return Number.NaN;
      return sign * magnitudeOf(format, positive);
    });
  }
  decoders.set(dtype, table);
  return table;
}

/**
 * The code of a number, ties to even. With `saturate` numbers beyond the range become the largest finite one, else
 * infinity (f8e5m2) or NaN. f4e2m1 has neither: it always saturates, and NaN becomes 0 (as in ONNX's own cases).
 */
export function encodeMiniFloat(dtype: MiniFloat, value: number, saturate = true): number {
  if (dtype === 'f8e8m0') return encodeScale(value, 'up', saturate);
  const format = FORMATS[dtype];
  const negative = value < 0 || Object.is(value, -0);
  const signBit = negative ? format.codes : 0;
  if (Number.isNaN(value)) return format.nan ?? 0;
  const magnitude = Math.abs(value);
  let low = 0;
  let high = format.largest + 1;
  // The largest code whose value is not above the magnitude; one code past the finite ones stands for overflow.
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (magnitudeOf(format, middle) <= magnitude) low = middle;
    else high = middle;
  }
  const below = magnitudeOf(format, low);
  const above = magnitudeOf(format, low + 1);
  const nearest = magnitude - below > above - magnitude ? low + 1 : low;
  const code = magnitude - below === above - magnitude && low % 2 === 1 ? low + 1 : nearest;
  if (code > format.largest || magnitude === Number.POSITIVE_INFINITY) {
    if (saturate || dtype === 'f4e2m1') return signBit | format.largest;
    return format.infinity === undefined ? nanWithSign(format, signBit) : signBit | format.infinity;
  }
  return code === 0 && format.unsignedZero ? 0 : signBit | code;
}

function nanWithSign(format: Format, signBit: number): number {
  return format.unsignedZero ? format.nan! : signBit | format.nan!;
}

/** The f8e8m0 code (a power of two, `2 ** (code - 127)`) of a number; the sign is dropped. */
export function encodeScale(value: number, mode: 'up' | 'down' | 'nearest', saturate = true): number {
  const magnitude = Math.abs(value);
  if (Number.isNaN(value)) return 255;
  if (magnitude === Number.POSITIVE_INFINITY) return saturate ? 254 : 255;
  if (magnitude === 0) return 0;
  let exponent = Math.floor(Math.log2(magnitude));
  // log2 of a number next to a power of two can be off by one.
  while (2 ** exponent > magnitude) exponent--;
  while (2 ** (exponent + 1) <= magnitude) exponent++;
  const ratio = magnitude / 2 ** exponent;
  if ((mode === 'up' && ratio > 1) || (mode === 'nearest' && ratio >= 1.5)) exponent++;
  if (exponent > 127) return saturate ? 254 : 255;
  return Math.max(0, exponent + 127);
}
