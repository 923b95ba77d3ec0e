// Makes docs/images/report.png: the top of a real report as Chromium draws it, as a PNG of 256 colours.
//
//   npm start -- --out .tmp/demo && node docs/images/capture-report.mjs .tmp/demo
//
// The picture is of the demo model for all targets: it needs the QNN toolchain, and /usr/bin/chromium. Fonts are those of
// the machine; the committed picture was made with Inter and JetBrains Mono (Debian: fonts-inter, fonts-jetbrains-mono).
import { writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { crc32, deflateSync } from 'node:zlib';
import { chromium } from 'playwright-core';

const WIDTH = 1160;
const SCALE = 1.5;
const LIMIT = 250_000;

const folder = resolve(process.argv[2] ?? '.tmp/demo');
const browser = await chromium.launch({
  executablePath: '/usr/bin/chromium',
  args: ['--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars'],
});
const page = await browser.newPage({ viewport: { width: WIDTH, height: 900 }, deviceScaleFactor: SCALE });
await page.goto(pathToFileURL(join(folder, 'report.html')).href);
const plot = await page.locator('.plot').boundingBox();
const screenshot = await page.screenshot({
  fullPage: true,
  clip: { x: 0, y: 0, width: WIDTH, height: plot.y + plot.height + 7 },
});
const { width, height, pixels } = await decode(screenshot);
await browser.close();
const png = encodeIndexed(width, height, pixels);
if (png.length > LIMIT) throw new Error(`the picture has ${png.length} bytes, at most ${LIMIT} are committed`);
writeFileSync(new URL('report.png', import.meta.url), png);
process.stdout.write(`docs/images/report.png ${width}x${height} ${png.length} bytes\n`);

/** The pixels of a PNG, RGB in the low 24 bits each, by the browser's own decoder. */
async function decode(data) {
  const blank = await browser.newPage();
  const result = await blank.evaluate(
    async (url) => {
      const image = new Image();
      image.src = url;
      await image.decode();
      const context = new OffscreenCanvas(image.width, image.height).getContext('2d');
      context.drawImage(image, 0, 0);
      const { data: bytes } = context.getImageData(0, 0, image.width, image.height);
      let text = '';
      for (let i = 0; i < bytes.length; i += 32_768) text += String.fromCharCode(...bytes.subarray(i, i + 32_768));
      return { width: image.width, height: image.height, base64: btoa(text) };
    },
    `data:image/png;base64,${data.toString('base64')}`,
  );
  const bytes = Buffer.from(result.base64, 'base64');
  const pixels = new Uint32Array(result.width * result.height);
  for (let i = 0; i < pixels.length; i++) pixels[i] = bytes.readUInt32LE(4 * i) & 0xffffff;
  return { width: result.width, height: result.height, pixels };
}

/** An 8-bit palette PNG of the 256 commonest colours; the others, edges of letters, take the nearest. */
function encodeIndexed(width, height, pixels) {
  const counts = new Map();
  for (const pixel of pixels) counts.set(pixel, (counts.get(pixel) ?? 0) + 1);
  const palette = [...counts]
    .sort((a, b) => b[1] - a[1] || a[0] - b[0])
    .slice(0, 256)
    .map(([colour]) => colour);
  const index = new Map(palette.map((colour, i) => [colour, i]));
  const rows = Buffer.alloc((width + 1) * height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const colour = pixels[y * width + x];
      if (!index.has(colour)) index.set(colour, nearest(colour, palette));
      rows[y * (width + 1) + 1 + x] = index.get(colour);
    }
  }
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  header.set([8, 3, 0, 0, 0], 8);
  const colours = Buffer.from(palette.flatMap((colour) => [colour & 255, (colour >> 8) & 255, colour >> 16]));
  return Buffer.concat([
    Buffer.from('89504e470d0a1a0a', 'hex'),
    chunk('IHDR', header),
    chunk('PLTE', colours),
    chunk('IDAT', deflateSync(rows, { level: 9, memLevel: 9 })),
    chunk('IEND', Buffer.alloc(0)),
  ]);
}

function nearest(colour, palette) {
  const distance = (other) =>
    [0, 8, 16].reduce((sum, shift) => sum + (((colour >> shift) & 255) - ((other >> shift) & 255)) ** 2, 0);
  let best = 0;
  palette.forEach((other, i) => {
    if (distance(other) < distance(palette[best])) best = i;
  });
  return best;
}

function chunk(type, data) {
  const body = Buffer.concat([Buffer.from(type, 'latin1'), data]);
  const frame = Buffer.alloc(8 + body.length);
  frame.writeUInt32BE(data.length, 0);
  body.copy(frame, 4);
  frame.writeUInt32BE(crc32(body), 4 + body.length);
  return frame;
}
