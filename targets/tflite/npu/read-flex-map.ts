import { NpucError } from '../../../compiler/errors.ts';

/** Types of a FlexBuffer that a map of options holds (flatbuffers.dev, "FlexBuffers internals"). */
const [NULL, INT, UINT, STRING, MAP] = [0, 1, 2, 5, 9];

/**
 * Reads a FlexBuffer whose root is a map of integers and strings, or null, which is read as an empty map. The package's own reader fails on values of 64 bits, which
 * LiteRT writes.
 * @throws IO003 where it is anything else, or its offsets leave it
 */
export function readFlexMap(bytes: Uint8Array): Map<string, number | string> {
  const reader = new Reader(bytes);
  const width = bytes.at(-1) ?? 0;
  const packed = bytes.at(-2) ?? 0;
  if (packed >> 2 === NULL) return new Map();
  if (packed >> 2 !== MAP) throw malformed(`its root has type ${packed >> 2}, not a map`);
  const root = bytes.length - 2 - width;
  return reader.map(reader.follow(root, width), 1 << (packed & 3));
}

class Reader {
  readonly #view: DataView;

  constructor(bytes: Uint8Array) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  map(at: number, width: number): Map<string, number | string> {
    const count = this.#unsigned(at - width, width);
    // In front of the length stand the place of the keys and the width of their offsets.
    const keyWidth = this.#unsigned(at - 2 * width, width);
    const keys = this.follow(at - 3 * width, width);
    const entries = new Map<string, number | string>();
    for (let i = 0; i < count; i++) {
      const name = this.#text(this.follow(keys + i * keyWidth, keyWidth));
      const type = this.#unsigned(at + count * width + i, 1);
      entries.set(name, this.#value(at + i * width, width, type));
    }
    return entries;
  }

  #value(at: number, width: number, packed: number): number | string {
    switch (packed >> 2) {
      case INT:
      case UINT:
        return this.#unsigned(at, width);
      case STRING:
        return this.#text(this.follow(at, width));
      default:
        throw malformed(`a value has type ${packed >> 2}`);
    }
  }

  /** Offsets count backwards from where they stand. */
  follow(at: number, width: number): number {
    const target = at - this.#unsigned(at, width);
    if (target < 0) throw malformed('an offset leaves it');
    return target;
  }

  #unsigned(at: number, width: number): number {
    if (at < 0 || at + width > this.#view.byteLength) throw malformed('it is cut');
    switch (width) {
      case 1:
        return this.#view.getUint8(at);
      case 2:
        return this.#view.getUint16(at, true);
      case 4:
        return this.#view.getUint32(at, true);
      case 8:
        return Number(this.#view.getBigUint64(at, true));
      default:
        throw malformed(`a width of ${width} bytes`);
    }
  }

  /** Keys and strings end with a zero. */
  #text(at: number): string {
    let end = at;
    while (this.#unsigned(end, 1) !== 0) end++;
    return new TextDecoder().decode(new Uint8Array(this.#view.buffer, this.#view.byteOffset + at, end - at));
  }
}

function malformed(message: string): NpucError {
  return new NpucError('IO003', { message: `the options of an operator are damaged: ${message}` });
}
