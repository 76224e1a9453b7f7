// Numbers as people read them; the page is in English, so are its numbers.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const percents = new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 1 });
const UNITS = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];

export const NONE = "\u2013";

export function count(number) {
  return number === null || number === undefined ? NONE : whole.format(number);
}

export function rate(number) {
  return number >= 1000 ? whole.format(number) : short.format(number);
}

// A share never reads as nothing or all unless it is.
export function percent(share) {
  if (share === null || share === undefined) return NONE;
  return percents.format(share === 0 || share === 1 ? share : Math.min(0.999, Math.max(0.001, share)));
}

export function plural(number, word, words = `${word}s`) {
  return `${count(number)} ${number === 1 ? word : words}`;
}

// The two largest units: 3 h 12 min, 42 s, 0.8 s, 12 ms.
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  if (seconds < 0.001) return seconds > 0 ? `${short.format(seconds * 1e6)} \u00b5s` : "0 s";
  if (seconds < 1) return `${short.format(seconds * 1000)} ms`;
  if (seconds < 60) return `${short.format(seconds)} s`;
  const first = UNITS.findIndex(([, size]) => seconds >= size);
  const [name, size] = UNITS[first];
  const [nextName, nextSize] = UNITS[first + 1];
  const rest = Math.floor((seconds % size) / nextSize);
  return `${whole.format(Math.floor(seconds / size))} ${name}${rest ? ` ${rest} ${nextName}` : ""}`;
}

export function words(name) {
  return name.replaceAll("_", " ");
}
