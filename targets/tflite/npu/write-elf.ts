/** A symbol of a shared library: bytes of machine code, or of data that can be written. */
export interface ElfSymbol {
  readonly name: string;
  readonly kind: 'function' | 'object';
  readonly bytes: Uint8Array;
}

const HEADER = 64;
const PROGRAM_HEADER = 56;
const SYMBOL = 24;
const PAGE = 0x1000;

// Names and numbers of the ELF specification and its x86-64 supplement.
const PT_LOAD = 1;
const PT_DYNAMIC = 2;
const PT_GNU_STACK = 0x6474e551;
const [EXECUTE, WRITE, READ] = [1, 2, 4];
const DT = { NULL: 0, HASH: 4, STRTAB: 5, SYMTAB: 6, STRSZ: 10, SYMENT: 11, SONAME: 14 } as const;
const STB_GLOBAL = 1;
const STT = { object: 1, function: 2 } as const;
/** Any index of a section: the loader looks whether it is 0, which means undefined. */
const DEFINED = 1;

/**
 * A shared library for Linux on x86-64: its name, and symbols without relocations. It stands in for a library that a vendor's
 * plugin is linked with and needs nothing of, so that no compiler is wanted on the user's machine. It has no sections; the
 * dynamic loader reads none.
 *
 *     page 0 (read, execute)   header, program headers, symbols, hash table, names, code
 *     page n (read, write)     dynamic table, data
 *
 * Same arguments, same bytes.
 */
export function writeElf(soname: string, symbols: readonly ElfSymbol[] = []): Uint8Array {
  const names = new Names();
  const soname_ = names.add(soname);
  const offsets = symbols.map(({ name }) => names.add(name));
  const strings = names.bytes();

  const count = symbols.length + 1;
  const symtab = HEADER + 4 * PROGRAM_HEADER;
  const hash = symtab + count * SYMBOL;
  const strtab = hash + 4 * (2 + 1 + count);
  const code = layOut(symbols, 'function', align(strtab + strings.length, 16));
  const dynamic = align(code.end, PAGE);
  const entries = 7;
  const data = layOut(symbols, 'object', align(dynamic + entries * 16, 16));

  const bytes = new Uint8Array(data.end);
  const view = new DataView(bytes.buffer);
  const u64 = (at: number, value: number): void => view.setBigUint64(at, BigInt(value), true);
  // 64 bits, little endian, version 1; a shared object for x86-64.
  bytes.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  view.setUint16(16, 3, true);
  view.setUint16(18, 62, true);
  view.setUint32(20, 1, true);
  u64(32, HEADER);
  view.setUint16(52, HEADER, true);
  view.setUint16(54, PROGRAM_HEADER, true);
  view.setUint16(56, 4, true);

  const segment = (index: number, type: number, flags: number, from: number, to: number, alignment: number): void => {
    const at = HEADER + index * PROGRAM_HEADER;
    view.setUint32(at, type, true);
    view.setUint32(at + 4, flags, true);
    // File offset, virtual and physical address are one number; so are the lengths in file and memory.
    for (const field of [8, 16, 24]) u64(at + field, from);
    for (const field of [32, 40]) u64(at + field, to - from);
    u64(at + 48, alignment);
  };
  segment(0, PT_LOAD, READ | EXECUTE, 0, code.end, PAGE);
  segment(1, PT_LOAD, READ | WRITE, dynamic, data.end, PAGE);
  segment(2, PT_DYNAMIC, READ | WRITE, dynamic, dynamic + entries * 16, 8);
  segment(3, PT_GNU_STACK, READ | WRITE, 0, 0, 16);

  const places = new Map([...code.places, ...data.places]);
  symbols.forEach((symbol, i) => {
    const at = symtab + (i + 1) * SYMBOL;
    view.setUint32(at, offsets[i]!, true);
    bytes[at + 4] = (STB_GLOBAL << 4) | STT[symbol.kind];
    view.setUint16(at + 6, DEFINED, true);
    u64(at + 8, places.get(symbol)!);
    u64(at + 16, symbol.bytes.length);
    bytes.set(symbol.bytes, places.get(symbol)!);
  });
  // One bucket: every look-up walks the whole chain, which is short, and no hash has to be computed.
  const words = [1, count, count > 1 ? 1 : 0, 0, ...symbols.map((_, i) => (i + 2 < count ? i + 2 : 0))];
  words.forEach((word, i) => view.setUint32(hash + 4 * i, word, true));
  bytes.set(strings, strtab);
  const table: readonly (readonly [number, number])[] = [
    [DT.SONAME, soname_],
    [DT.HASH, hash],
    [DT.STRTAB, strtab],
    [DT.SYMTAB, symtab],
    [DT.STRSZ, strings.length],
    [DT.SYMENT, SYMBOL],
    [DT.NULL, 0],
  ];
  table.forEach(([tag, value], i) => {
    u64(dynamic + i * 16, tag);
    u64(dynamic + i * 16 + 8, value);
  });
  return bytes;
}

/** Zero-terminated names; offset 0 is the empty one. */
class Names {
  #text = '\0';

  add(name: string): number {
    const offset = this.#text.length;
    this.#text += `${name}\0`;
    return offset;
  }

  bytes(): Uint8Array {
    return new TextEncoder().encode(this.#text);
  }
}

interface Placed {
  readonly places: ReadonlyMap<ElfSymbol, number>;
  readonly end: number;
}

function layOut(symbols: readonly ElfSymbol[], kind: ElfSymbol['kind'], start: number): Placed {
  const places = new Map<ElfSymbol, number>();
  let end = start;
  for (const symbol of symbols) {
    if (symbol.kind !== kind) continue;
    const place = align(end, 16);
    places.set(symbol, place);
    end = place + symbol.bytes.length;
  }
  return { places, end };
}

const align = (offset: number, to: number): number => Math.ceil(offset / to) * to;
