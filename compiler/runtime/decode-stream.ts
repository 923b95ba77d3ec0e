/** Text that comes out while ids go in. */
export interface DecodeStream {
  /** Takes one id; returns the text that is now certain, possibly none. */
  push(id: number): string;
  /** The rest: an unfinished character as U+FFFD. The stream is then ready for another text. */
  flush(): string;
}

const REPLACEMENT = '\uFFFD';

/**
 * Makes a stream whose pieces join to exactly what `decode` gives for all ids at once.
 *
 * A decoder cannot be asked for one id: a character may lie across ids, and Llama's decoder strips the first space of
 * whatever it is given. So a window of ids is decoded again for each new one and only the text beyond what was already given
 * is returned. The window starts with an id that shows some text by itself, so that the strip takes the same space both
 * times. A last U+FFFD may still become a character and is held back.
 */
export function streamDecode(decode: (ids: readonly number[]) => string): DecodeStream {
  let window: number[] = [];
  /** Characters of decode(window) that were returned already. */
  let given = 0;
  return {
    push(id) {
      window.push(id);
      const text = decode(window);
      const held = text.endsWith(REPLACEMENT);
      const end = held ? text.length - 1 : text.length;
      const piece = text.slice(given, end);
      given = Math.max(given, end);
      if (!held && text !== '') {
        const alone = decode([id]);
        // An id that shows nothing (a special token, a stripped space) cannot stand for the start of the text.
        if (alone !== '') {
          window = [id];
          given = alone.length;
        }
      }
      return piece;
    },
    flush() {
      const rest = decode(window).slice(given);
      window = [];
      given = 0;
      return rest;
    },
  };
}
