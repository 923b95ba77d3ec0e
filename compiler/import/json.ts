import { NpucError } from '../errors.ts';
import { FileSource } from '../ir/tensor.ts';

/** A JSON object of a checkpoint: `config.json` and its kin. */
export type JsonObject = Readonly<Record<string, unknown>>;

/** The largest tokenizer.json in use is below 40 MB. */
const MAX_JSON_BYTES = 256 << 20;

export function isJsonObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/**
 * Decodes UTF-8 bytes that must hold one JSON object.
 * @throws IO003 not UTF-8, not JSON (NaN and Infinity are not JSON), or not an object
 */
export function parseJsonObject(bytes: Uint8Array, where: string, what = 'the file'): JsonObject {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (cause) {
    throw new NpucError('IO003', { message: `${what} is not JSON: ${(cause as Error).message}`, where, cause });
  }
  if (!isJsonObject(value)) throw new NpucError('IO003', { message: `${what} is not a JSON object`, where });
  return value;
}

/**
 * Reads a file that must hold one JSON object.
 * @throws IO001 it cannot be opened, IO003 it is too large or not a JSON object
 */
export function readJsonObject(path: string): JsonObject {
  const file = new FileSource(path);
  try {
    if (file.size > MAX_JSON_BYTES) {
      throw new NpucError('IO003', { message: `${file.size} bytes are too many for a JSON file`, where: path });
    }
    return parseJsonObject(file.read(0, file.size), path);
  } finally {
    file.close();
  }
}

/**
 * The first key that the outermost object of a JSON text holds twice, or undefined. JSON.parse keeps the last one silently.
 * The text must already have parsed as an object.
 */
export function findDuplicateKey(text: string): string | undefined {
  const seen = new Set<string>();
  let depth = 0;
  let expectKey = false;
  for (let at = 0; at < text.length; at++) {
    const char = text[at];
    if (char === '{' || char === '[') {
      depth++;
      expectKey = depth === 1;
    } else if (char === '}' || char === ']') depth--;
    else if (char === ',') expectKey = depth === 1;
    else if (char === '"') {
      const end = findStringEnd(text, at);
      if (expectKey) {
        const key = JSON.parse(text.slice(at, end + 1)) as string;
        if (seen.has(key)) return key;
        seen.add(key);
        expectKey = false;
      }
      at = end;
    }
  }
  return undefined;
}

/** The index of the quote that closes the string opened at `start`: one with an even number of backslashes before it. */
function findStringEnd(text: string, start: number): number {
  for (let end = text.indexOf('"', start + 1); end >= 0; end = text.indexOf('"', end + 1)) {
    let slashes = 0;
    while (text[end - 1 - slashes] === '\\') slashes++;
    if (slashes % 2 === 0) return end;
  }
  return text.length;
}
