import { NpucError } from '../errors.ts';
import { DTYPES, type DType } from './dtype.ts';
import type { Dim, ValueType } from './graph.ts';
import type { Literal } from './text-data.ts';
import { badText, lex, locate, type Token, type TokenKind } from './text-lex.ts';

/** A cursor over the tokens of a text, with the small rules that every part of the grammar shares. */
export class TokenReader {
  readonly #text: string;
  readonly #file: string;
  readonly #tokens: readonly Token[];
  #at = 0;

  /** @throws IR101 when the text does not even fall into tokens */
  constructor(text: string, file: string) {
    this.#text = text;
    this.#file = file;
    this.#tokens = lex(text, file);
  }

  get next(): Token {
    return this.#tokens[this.#at]!;
  }

  /** The error for something wrong at a token (the next one by default). */
  problem(message: string, token: Token = this.next): NpucError {
    return badText(this.#text, token.start, this.#file, message);
  }

  /** The error for a name that is not defined here, or is already. */
  unknown(message: string, token: Token): NpucError {
    return new NpucError('IR102', { message, where: locate(this.#text, token.start, this.#file) });
  }

  /** The error for data that was printed as its digest only. */
  missing(message: string, token: Token): NpucError {
    return new NpucError('IR103', {
      message,
      where: locate(this.#text, token.start, this.#file),
      hint: "print the module with { data: 'all' }, or give parseModule a resolve function",
    });
  }

  take(): Token {
    const token = this.next;
    if (token.kind !== 'end') this.#at += 1;
    return token;
  }

  skipNewlines(): void {
    while (this.next.kind === 'newline') this.#at += 1;
  }

  is(kind: TokenKind, text?: string): boolean {
    return this.next.kind === kind && (text === undefined || this.next.text === text);
  }

  /** Takes the next token when it is the one asked for. */
  accept(kind: TokenKind, text?: string): Token | undefined {
    return this.is(kind, text) ? this.take() : undefined;
  }

  /** @throws IR101 when the next token is another one */
  expect(kind: TokenKind, text?: string): Token {
    if (!this.is(kind, text)) {
      const wanted = text === undefined ? NAMES_OF_KINDS[kind] : JSON.stringify(text);
      throw this.problem(`expected ${wanted}, found ${this.#describe(this.next)}`);
    }
    return this.take();
  }

  #describe(token: Token): string {
    if (token.kind === 'newline') return 'the end of the line';
    if (token.kind === 'end') return 'the end of the text';
    return this.#text.slice(token.start, token.stop);
  }

  /** @throws IR101 when something is left on the line */
  endOfLine(): void {
    if (!this.is('newline') && !this.is('end')) throw this.problem(`unexpected ${this.#describe(this.next)}`);
    this.skipNewlines();
  }

  /** A word, bare or quoted. */
  word(): string {
    return (this.accept('string') ?? this.expect('word')).text;
  }

  string(): string {
    return this.expect('string').text;
  }

  integer(): number {
    const token = this.expect('number');
    const value = Number(token.text);
    if (!Number.isSafeInteger(value)) throw this.problem(`${token.text} is not an integer`, token);
    return value;
  }

  /** A number that may be written without a point, `nan` and `inf` included. */
  number(): number {
    if (this.accept('word', 'nan')) return Number.NaN;
    return parseNumber(this.expect('number').text);
  }

  /** An element of a literal: integers stay exact, strings and booleans are themselves. */
  literal(): Literal {
    if (this.is('string')) return this.take().text;
    if (this.accept('word', 'true')) return true;
    if (this.accept('word', 'false')) return false;
    if (this.accept('word', 'nan')) return Number.NaN;
    const { text } = this.expect('number');
    if (isIntegerSpelling(text)) {
      const value = Number(text);
      return Number.isSafeInteger(value) ? value : BigInt(text);
    }
    return parseNumber(text);
  }

  /** Items between two marks, separated by commas; newlines may stand anywhere between them. */
  list<T>(open: string, close: string, item: () => T): T[] {
    this.expect('mark', open);
    const items: T[] = [];
    this.skipNewlines();
    while (!this.is('mark', close)) {
      if (items.length > 0) {
        this.expect('mark', ',');
        this.skipNewlines();
      }
      items.push(item());
      this.skipNewlines();
    }
    this.expect('mark', close);
    return items;
  }

  /** An element type. */
  dtype(): DType {
    const token = this.expect('word');
    if (!(token.text in DTYPES)) throw this.problem(`${token.text} is not an element type`, token);
    return token.text as DType;
  }

  /** `f32[1,64]`, `f32` (rank unknown), `sequence(f32)`, `optional(...)`, `map(i64, f32)`, `?` (unknown). */
  type(): ValueType | undefined {
    if (this.accept('mark', '?')) return undefined;
    for (const kind of ['sequence', 'optional'] as const) {
      if (!this.accept('word', kind)) continue;
      this.expect('mark', '(');
      const element = this.type();
      this.expect('mark', ')');
      return { kind, element };
    }
    if (this.accept('word', 'map')) {
      this.expect('mark', '(');
      const key = this.dtype();
      this.expect('mark', ',');
      const element = this.type();
      this.expect('mark', ')');
      return { kind: 'map', key, element };
    }
    const dtype = this.dtype();
    return this.is('mark', '[') ? { kind: 'tensor', dtype, shape: this.shape() } : { kind: 'tensor', dtype };
  }

  /** `[1, past + tokens, "any expression"]` */
  shape(): Dim[] {
    return this.list('[', ']', () => this.#dim());
  }

  /** A shape whose dimensions are all numbers. */
  fixedShape(): number[] {
    const start = this.next;
    const shape = this.shape();
    if (!shape.every((dim) => typeof dim === 'number' && dim >= 0))
      throw this.problem(`the shape [${shape}] of a constant must be fixed`, start);
    return shape as number[];
  }

  /** A dimension: an integer, a string, or the source text of an expression up to the next comma outside parentheses. */
  #dim(): Dim {
    if (this.is('string')) return this.take().text;
    const first = this.next;
    let last = first;
    let depth = 0;
    while (depth > 0 || !(this.is('mark', ',') || this.is('mark', ']'))) {
      if (this.is('newline') || this.is('end')) throw this.problem('a dimension has no end on its line');
      last = this.take();
      if (last.kind === 'mark' && last.text === '(') depth += 1;
      if (last.kind === 'mark' && last.text === ')') depth -= 1;
    }
    if (last === first && first.kind === 'number') {
      const value = Number(first.text);
      if (!Number.isSafeInteger(value)) throw this.problem(`${first.text} is not a dimension`, first);
      return value;
    }
    if (last.stop <= first.start) throw this.problem('a dimension is missing', first);
    return this.#text.slice(first.start, last.stop);
  }

  /** `raw "<hexadecimal>"`, after the word. */
  bytes(): Uint8Array {
    const token = this.expect('string');
    if (!/^(?:[0-9a-f]{2})*$/i.test(token.text)) throw this.problem('raw bytes are pairs of hexadecimal digits', token);
    return new Uint8Array(Buffer.from(token.text, 'hex'));
  }
}

const NAMES_OF_KINDS: Readonly<Record<TokenKind, string>> = {
  newline: 'the end of the line',
  word: 'a word',
  number: 'a number',
  string: 'a string',
  value: 'a %value',
  graph: 'a @graph name',
  digest: 'a #digest',
  mark: 'a mark',
  end: 'the end of the text',
};

function parseNumber(text: string): number {
  if (text === 'inf') return Number.POSITIVE_INFINITY;
  return text === '-inf' ? Number.NEGATIVE_INFINITY : Number(text);
}

/** Whether a number was written as an integer: no point, no exponent, finite. */
export function isIntegerSpelling(text: string): boolean {
  return /^-?\d+$/.test(text);
}
