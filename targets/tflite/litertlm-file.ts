import { createHash, randomUUID } from 'node:crypto';
import { closeSync, openSync, renameSync, rmSync, writeSync } from 'node:fs';
import { NpucError } from '../../compiler/errors.ts';
import { type ByteSource, SourceBytes } from './byte-source.ts';
import { readFlatBuffer } from './flatbuffer-reader.ts';
import { alignUp, writeFlatBuffer } from './flatbuffer-writer.ts';
import type { BufferBytes, TableValue } from './schema.ts';

/** What a section holds, by the code in the header. */
export const SECTION_TYPES = [
  'none',
  'binary',
  'deprecated',
  'tflite-model',
  'sentencepiece-tokenizer',
  'llm-metadata',
  'hf-tokenizer',
  'tflite-weights',
  'embedding-metadata',
  'executor-metadata',
  'tts-metadata',
  'asr-metadata',
] as const;
export type SectionType = (typeof SECTION_TYPES)[number];

export type BundleValue = string | number | bigint | boolean;

/** A section as it is written: what it is, what is said about it, its bytes. */
export interface BundleSection {
  readonly type: SectionType;
  readonly items: Readonly<Record<string, string>>;
  readonly bytes: BufferBytes;
}

/** A section as it was read; a type that this version does not know is its code. */
export interface ReadSection {
  readonly type: SectionType | number;
  readonly items: Readonly<Record<string, BundleValue>>;
  /** Where it lies in the file. */
  readonly offset: number;
  readonly byteLength: number;
  /** The section alone. */
  readonly source: ByteSource;
}

export interface LitertLmFile {
  /** Of the format. */
  readonly version: string;
  readonly system: Readonly<Record<string, BundleValue>>;
  readonly sections: readonly ReadSection[];
}

export interface WrittenBundle {
  readonly byteLength: number;
  readonly sha256: string;
}

const MAGIC = 'LITERTLM';
/** Format 1.7.0, the one that LiteRT-LM 0.18 writes. */
const VERSION = [1, 7, 0] as const;
const HEADER_END = 24;
const HEADER_START = 32;
/** Sections begin at multiples of this, so that a runtime can map them. */
const BLOCK = 16 * 1024;
/** Headers are a page or two; one that claims more is no header. */
const LONGEST_HEADER = 1 << 24;

/** Whether a file begins as a .litertlm file does. */
export function isLitertLm(source: ByteSource): boolean {
  return source.size >= MAGIC.length && String.fromCharCode(...source.read(0, MAGIC.length)) === MAGIC;
}

/**
 * Writes a .litertlm file: "LITERTLM", the version (3 x u32), the header's end (u64 at 24), the header (a FlatBuffer at 32),
 * then each section at a multiple of 16 KiB. Same sections, same bytes: the file's own id comes from their digests, and it
 * has no time of creation. Sections are streamed; the file appears whole or not at all.
 * @throws IO002 when it cannot be written
 */
export function writeLitertLm(
  path: string,
  system: Readonly<Record<string, string>>,
  sections: readonly BundleSection[],
): WrittenBundle {
  const partial = `${path}.${randomUUID()}.partial`;
  const entries = { ...system, uuid: contentId(sections) };
  let descriptor: number | undefined;
  try {
    descriptor = openSync(partial, 'wx');
    const file = descriptor;
    const hash = createHash('sha256');
    let position = 0;
    const put = (bytes: Uint8Array): void => {
      hash.update(bytes);
      for (let done = 0; done < bytes.byteLength; ) done += writeSync(file, bytes, done);
      position += bytes.byteLength;
    };
    const { head, starts } = layOut(entries, sections);
    put(head);
    sections.forEach(({ bytes }, i) => {
      if (starts[i]! > position) put(new Uint8Array(starts[i]! - position));
      if (bytes instanceof Uint8Array) put(bytes);
      else bytes.write(put);
    });
    closeSync(file);
    descriptor = undefined;
    renameSync(partial, path);
    return { byteLength: position, sha256: hash.digest('hex') };
  } catch (cause) {
    if (descriptor !== undefined) closeSync(descriptor);
    rmSync(partial, { force: true });
    if (typeof (cause as NodeJS.ErrnoException).syscall !== 'string') throw cause;
    throw new NpucError('IO002', { message: `cannot write ${path}: ${(cause as Error).message}`, where: path, cause });
  }
}

/** The first 32 bytes and the header, and where sections begin. Placeholders have the width of real offsets. */
function layOut(
  system: Readonly<Record<string, string>>,
  sections: readonly BundleSection[],
): { readonly head: Uint8Array; readonly starts: readonly number[] } {
  const encode = (places: readonly { begin: number; end: number }[]): Uint8Array =>
    writeFlatBuffer('BundleHeader', {
      system: { entries: pairsOf(system) },
      sections: {
        objects: sections.map(({ type, items }, i) => ({
          items: pairsOf(items),
          beginOffset: BigInt(places[i]!.begin),
          endOffset: BigInt(places[i]!.end),
          dataType: SECTION_TYPES.indexOf(type),
        })),
      },
    }).head;
  const length = HEADER_START + encode(sections.map(() => ({ begin: 1, end: 1 }))).byteLength;
  const places: { begin: number; end: number }[] = [];
  let end = length;
  for (const { bytes } of sections) {
    const begin = alignUp(end, BLOCK);
    end = begin + bytes.byteLength;
    places.push({ begin, end });
  }
  const head = new Uint8Array(length);
  head.set(Buffer.from(MAGIC, 'latin1'));
  const view = new DataView(head.buffer);
  VERSION.forEach((part, i) => view.setUint32(8 + 4 * i, part, true));
  view.setBigUint64(HEADER_END, BigInt(length), true);
  head.set(encode(places), HEADER_START);
  return { head, starts: places.map(({ begin }) => begin) };
}

function pairsOf(items: Readonly<Record<string, string>>): TableValue<'BundlePair'>[] {
  return Object.entries(items).map(([key, value]) => ({ key, value: { kind: 'BundleText', value } }));
}

/** An id in the form of a UUID (version 8), made from what the sections hold. */
function contentId(sections: readonly BundleSection[]): string {
  const hash = createHash('sha256');
  for (const { type, items, bytes } of sections) {
    hash.update(JSON.stringify([type, items, bytes.byteLength]));
    if (bytes instanceof Uint8Array) hash.update(bytes);
    else bytes.write((chunk) => hash.update(chunk));
  }
  const digits = hash.digest('hex');
  const variant = '89ab'[Number.parseInt(digits[16]!, 16) & 3];
  return [
    digits.slice(0, 8),
    digits.slice(8, 12),
    `8${digits.slice(13, 16)}`,
    `${variant}${digits.slice(17, 20)}`,
    digits.slice(20, 32),
  ].join('-');
}

/**
 * Reads the header of a .litertlm file; sections are ranges of the source.
 * @throws IO003 when it is none, when it is cut, or when a section leaves it; TF105 for another major version
 */
export function readLitertLm(source: ByteSource): LitertLmFile {
  const fail = (message: string): never => {
    throw new NpucError('IO003', { message });
  };
  if (!isLitertLm(source)) fail(`the file does not begin with ${MAGIC}`);
  if (source.size < HEADER_START) fail(`${source.size} bytes are too few for a header`);
  const view = viewOf(source.read(0, HEADER_START));
  const version = VERSION.map((_, i) => view.getUint32(8 + 4 * i, true));
  if (version[0] !== VERSION[0]) {
    throw new NpucError('TF105', {
      message: `the file has the format ${version.join('.')}; this version reads ${VERSION[0]}.x`,
      hint: 'the file was written for another LiteRT-LM than this tool knows, or is damaged',
    });
  }
  const end = Number(view.getBigUint64(HEADER_END, true));
  if (end <= HEADER_START || end > source.size || end - HEADER_START > LONGEST_HEADER)
    fail(`its header ends at ${end}`);
  const header = readFlatBuffer(partOf(source, HEADER_START, end - HEADER_START), 'BundleHeader');
  const sections = (header.sections?.objects ?? []).map((section, i): ReadSection => {
    const [begin, stop] = [Number(section.beginOffset ?? 0n), Number(section.endOffset ?? 0n)];
    if (begin < end || stop < begin || stop > source.size)
      fail(`section ${i} is bytes ${begin}..${stop} of ${source.size}, behind a header of ${end}`);
    const code = section.dataType ?? 0;
    return {
      type: SECTION_TYPES[code] ?? code,
      items: valuesOf(section.items),
      offset: begin,
      byteLength: stop - begin,
      source: partOf(source, begin, stop - begin),
    };
  });
  return { version: version.join('.'), system: valuesOf(header.system?.entries), sections };
}

function valuesOf(pairs: readonly TableValue<'BundlePair'>[] = []): Record<string, BundleValue> {
  return Object.fromEntries(pairs.map(({ key, value }) => [key ?? '', value?.value ?? '']));
}

/** A range of a source as a source of its own. */
function partOf(source: ByteSource, start: number, size: number): ByteSource {
  const part = new SourceBytes(source, start, size);
  return { size, read: (offset, length) => part.read(offset, length) };
}

/** The bytes of a section as something that is written in chunks. */
export function streamSection({ source }: Pick<ReadSection, 'source'>): BufferBytes {
  return new SourceBytes(source, 0, source.size);
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
